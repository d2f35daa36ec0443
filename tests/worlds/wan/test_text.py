"""Prompts and their embeddings, against diffusers' pipeline and the tokenizer's own library."""

from __future__ import annotations

import random
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline, prompt_clean
from diffusers.utils import logging as of_diffusers
from safetensors.torch import load_file, save_file
from tiny import relative_error
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hiar.errors import UserError
from hiar.late import let_in
from hiar.worlds.wan.pretrained import load_pretrained
from hiar.worlds.wan.text import (
    MAX_TOKENS,
    NEGATIVE_PROMPT,
    TextEncoder,
    clean,
    encoder_width,
    load_text_encoder,
    load_tokenizer,
    pad,
    token_ids,
)
from hiar.worlds.wan.tiny import SENTENCES

WEIGHTS = Path("text_encoder", "model.safetensors")


def _nasty(count: int) -> list[str]:
    """Prompts in every script, with text that cleaning changes, invisible characters and lookalikes of tokens."""
    dice = random.Random(0)
    planes = [
        (0x20, 0x7E),
        (0x00, 0x20),
        (0xA0, 0x24F),
        (0x300, 0x36F),
        (0x600, 0x6FF),
        (0xE00, 0xE7F),
        (0x1100, 0x11FF),
    ]
    planes += [
        (0x2000, 0x206F),
        (0x3040, 0x30FF),
        (0x4E00, 0x9FFF),
        (0xFB00, 0xFB06),
        (0xFF01, 0xFF5E),
        (0x1F300, 0x1FAFF),
    ]
    parts = [
        "&amp;amp;lt;b&gt;",
        "â€œquotedâ€\x9d",
        "schÃ¶n",
        "</s>",
        "<pad>",
        "<0x41>",
        "\u200b",
        "\ufeff",
        " \t\r\n",
        "👩‍👩‍👧‍👦",
    ]
    parts += [*SENTENCES, *(word for sentence in SENTENCES for word in sentence.split())]
    prompts = ["", " ", "\u2028"]
    while len(prompts) < count:
        pieces = []
        for _ in range(dice.randint(1, 20)):
            low, high = dice.choice(planes)
            letters = "".join(chr(dice.randint(low, high)) for _ in range(dice.randint(1, 12)))
            pieces.append(dice.choice([letters, dice.choice(parts)]))
        prompts.append(dice.choice(["", " "]).join(pieces))
    return prompts


NASTY = _nasty(200)


@pytest.fixture(scope="module")
def encoder(base: Path) -> TextEncoder:
    return load_text_encoder(base, dtype=torch.float32)


@pytest.fixture(scope="module")
def pipeline(base: Path) -> WanPipeline:
    """Diffusers' pipeline with a tokenizer that follows its file: see `load_tokenizer`."""
    return WanPipeline.from_pretrained(base, tokenizer=PreTrainedTokenizerFast.from_pretrained(base / "tokenizer"))


@pytest.fixture
def broken(base: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(base, tmp_path / "broken", ignore=shutil.ignore_patterns("vae", "transformer"))


def test_prompts_are_cleaned_as_in_diffusers() -> None:
    assert [clean(prompt) for prompt in NASTY] == [prompt_clean(prompt) for prompt in NASTY]
    assert clean("<&amp;amp;>") == prompt_clean("<&amp;amp;>") == "<&>"  # ftfy takes it for HTML and leaves it
    assert clean(" schÃ¶n &amp;lt;b&amp;gt;\n\u3000x ") == "schön <b> x"


def test_tokens_are_those_of_the_file(base: Path) -> None:
    theirs, ours = Tokenizer.from_file(str(base / "tokenizer" / "tokenizer.json")), load_tokenizer(base)
    for prompt in [*NASTY, NEGATIVE_PROMPT]:
        ids = theirs.encode(prompt_clean(prompt)).ids
        cut = ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], 1]
        assert token_ids(ours, prompt) == cut, prompt


def test_padding_and_truncation_in_a_tokenizer_file_are_ignored(base: Path, broken: Path) -> None:
    """The library saves such a file if the tokenizer has been used before."""
    path = broken / "tokenizer" / "tokenizer.json"
    saved = Tokenizer.from_file(str(path))
    saved.enable_padding(length=40)
    saved.enable_truncation(20)
    saved.save(str(path))
    for prompt in (SENTENCES[0], " ".join(SENTENCES)):
        ids = token_ids(load_tokenizer(broken), prompt)
        assert ids == token_ids(load_tokenizer(base), prompt)
        assert len(ids) not in (20, 40)


def test_embeddings_are_those_of_the_pipeline(encoder: TextEncoder, pipeline: WanPipeline) -> None:
    prompts = [*NASTY[:8], *SENTENCES[:2], NEGATIVE_PROMPT, " ".join(SENTENCES * 8)]
    ours = pad(encoder.rows(prompts))
    theirs, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS)
    assert relative_error(ours, theirs.detach()) < 1e-6
    assert ours.shape == (len(prompts), MAX_TOKENS, encoder.dim)
    assert [len(rows) for rows in encoder.rows(["", "A red panda"])] == [1, 4]  # </s> is the last row


def test_a_prompt_does_not_see_the_others_of_its_batch(encoder: TextEncoder) -> None:
    together = encoder.rows([SENTENCES[0], " ".join(SENTENCES), ""])
    for prompt, rows in zip([SENTENCES[0], " ".join(SENTENCES), ""], together, strict=True):
        assert relative_error(encoder.rows([prompt])[0], rows) < 1e-6


def test_a_long_prompt_is_cut_and_the_place_reported(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ids = token_ids(load_tokenizer(base), " ".join(["panda"] * 10_000))
    assert len(ids) == MAX_TOKENS
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("prompt 'panda panda")
    assert "longer than the 512 tokens that Wan reads, up to word 511 of 10000" in line
    assert len(line) < 300
    token_ids(load_tokenizer(base), " ".join(["panda"] * 511))  # plus </s>
    assert capfd.readouterr().err == ""


def test_weights_are_of_the_type_asked_for(base: Path) -> None:
    (rows,) = pad(load_text_encoder(base, dtype=torch.bfloat16).rows([SENTENCES[0]]))
    assert rows.dtype == torch.bfloat16


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.bfloat16, 2), (torch.float32, 4), (None, 4)])
def test_an_encoder_that_does_not_fit_in_memory_is_refused(
    dtype: torch.dtype | None, itemsize: int, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = itemsize * sum(weight.numel() for weight in load_file(base / WEIGHTS).values())
    monkeypatch.setattr("hiar.io.free.free_bytes", lambda _: needed)
    load_text_encoder(base, dtype=dtype)
    monkeypatch.setattr("hiar.io.free.free_bytes", lambda _: needed - 1)
    with pytest.raises(UserError, match=r"text_encoder: takes .* of memory, .* are free; end other programs"):
        load_text_encoder(base, dtype=dtype)


def test_without_ftfy_nothing_is_encoded(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match=r"^ftfy: is not installed, .*; in the project, pip install '\.\[wan\]'$"):
        load_text_encoder(base)


def test_invalid_unicode_is_refused() -> None:
    with pytest.raises(UserError, match=r"^prompt 'a\\udce9b': character 1 is a lone surrogate; give it in UTF-8$"):
        clean("a\udce9b")


@pytest.mark.parametrize("edit", ["missing", "unexpected", "mismatched"])
def test_weights_that_are_not_exactly_the_encoders_are_refused(broken: Path, edit: str) -> None:
    weights, name = load_file(broken / WEIGHTS), "encoder.final_layer_norm.weight"
    norm = weights.pop(name)
    if edit != "missing":
        weights[name] = norm[:3].clone() if edit == "mismatched" else norm
    if edit == "unexpected":
        weights["more"] = norm.clone()
    save_file(weights, broken / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=rf"text_encoder: cannot be loaded \({edit} weights: [^\n]*copy it again$"):
        load_text_encoder(broken)


def test_of_many_missing_weights_three_are_named(broken: Path) -> None:
    weights = load_file(broken / WEIGHTS)
    first, second, third, *_ = missing = sorted(name for name in weights if name.startswith("encoder."))[-5:]
    save_file({name: weight for name, weight in weights.items() if name not in missing}, broken / WEIGHTS)
    with pytest.raises(UserError, match=re.escape(f"(missing weights: {first}, {second}, {third} and 2 more); ")):
        load_text_encoder(broken)


def test_pickled_weights_are_not_read(broken: Path) -> None:
    """They may run code."""
    torch.save(load_file(broken / WEIGHTS), broken / "text_encoder" / "pytorch_model.bin")
    (broken / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"^[^\n]*text_encoder"):
        load_text_encoder(broken)
    let_in("transformers")
    from transformers import UMT5EncoderModel

    with pytest.raises(UserError, match=r"text_encoder: cannot be loaded"):
        load_pretrained(UMT5EncoderModel, broken / "text_encoder")


def test_loading_leaves_the_libraries_as_talkative_as_they_were(base: Path, broken: Path) -> None:
    let_in("transformers")
    from transformers.utils import logging as of_transformers

    (broken / WEIGHTS).unlink()
    loggers = (of_diffusers, of_transformers)
    before = [logger.get_verbosity() for logger in loggers]
    try:
        for logger in loggers:
            logger.set_verbosity_info()
        of_transformers.disable_progress_bar()
        for folder in (base, broken):
            with suppress(UserError):
                load_text_encoder(folder)
            assert [logger.get_verbosity() for logger in loggers] == [logger.INFO for logger in loggers]
            assert [logger.is_progress_bar_enabled() for logger in loggers] == [True, False]
    finally:
        of_transformers.enable_progress_bar()
        for logger, verbosity in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)


def test_weights_that_are_not_finite_are_refused_with_the_first_prompt(broken: Path) -> None:
    weights = load_file(broken / WEIGHTS)
    weights["encoder.final_layer_norm.weight"][0] = torch.nan
    save_file(weights, broken / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"^prompt 'A red panda.*not finite.*copy them again"):
        pad(load_text_encoder(broken).rows([SENTENCES[0]]))


@pytest.mark.parametrize("content", ["", "{}", '{"model": 3}', "version https://git-lfs.github.com/spec/v1"])
def test_a_broken_tokenizer_is_refused_in_one_line(broken: Path, content: str) -> None:
    (broken / "tokenizer" / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"^[^\n]*tokenizer\.json: is not a tokenizer \([^\n]*\); copy it again$"):
        load_text_encoder(broken)


@pytest.mark.parametrize("content", ["{}", '{"d_model": "4096"}'])
def test_an_encoder_without_a_width_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: d_model = .*: should be a number; copy it again$"):
        encoder_width(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(base: Path, broken: Path) -> None:
    tokenizer = Tokenizer.from_file(str(base / "tokenizer" / "tokenizer.json"))
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save(str(broken / "tokenizer" / "tokenizer.json"))
    with pytest.raises(
        UserError, match=r"vocab_size = \d+: the tokenizer beside it has \d+ tokens; .* copy both again"
    ):
        load_text_encoder(broken)


def test_a_folder_without_a_base_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: cannot be read .*name a Wan2.1 base model's folder"):
        load_text_encoder(tmp_path)
