"""LoRA adapters: added to the weights that they were trained on, or refused in a line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import hiar
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiar.errors import UserError
from hiar.models.card import load_card
from hiar.stages.exchange import import_checkpoint
from hiar.worlds.wan.formats.lora import add_lora
from hiar.worlds.wan.formats.names import to_diffusers, to_original
from hiar.worlds.wan.formats.stored import read_sharded

LAYERS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.0.ffn.0", "blocks.1.ffn.2")
RANK, SCALE = 3, 0.5
Spoil = Callable[[dict[str, Tensor]], dict[str, Any]]


def weights_of(base: Path) -> dict[str, Tensor]:
    return load_file(base / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def updates(base: Path) -> dict[str, Tensor]:
    """The adapter's tensors by the original's names, as peft saves them for a network under FSDP."""
    random, held, adapter = torch.Generator().manual_seed(0), weights_of(base), {}
    for layer in LAYERS:
        rows, columns = held[str(to_diffusers(f"{layer}.weight"))].shape
        name = f"base_model.model.{layer.replace('.', '._fsdp_wrapped_module.', 2)}"
        adapter[f"{name}.lora_A.weight"] = torch.randn(RANK, columns, generator=random)
        adapter[f"{name}.lora_B.weight"] = torch.randn(rows, RANK, generator=random)
    return adapter


def write_adapter(adapter: dict[str, Any], folder: Path, form: str = "pt") -> Path:
    path = folder / f"lora.{form}"
    if form == "safetensors":
        save_file(adapter, path)
    else:
        torch.save(adapter, path)
    return path


@pytest.mark.parametrize(
    ("form", "entry"), [("pt", None), ("pt", "generator_lora"), ("pt", "lora"), ("pt", "model"), ("safetensors", None)]
)
def test_an_imported_student_has_its_adapters_update(
    form: str, entry: str | None, updates: dict[str, Tensor], base: Path, tmp_path: Path
) -> None:
    """W + scale B A in the adapter's layers, every other tensor unchanged; the card is LongLive's."""
    path = write_adapter({entry: updates, "step": 3} if entry else updates, tmp_path, form)
    options = {"height": 32, "width": 48, "frames_per_second": 16, "precision": "no"}
    import_checkpoint(base, base, tmp_path / "out", "longlive", None, options, (path, SCALE))
    card = load_card(tmp_path / "out")
    assert card.walk is not None
    assert (card.walk.order, card.walk.context, card.schedule.student_steps) == ("block_first", "finished", 4)
    assert (card.video.block, card.video.window, card.video.sink_blocks) == (3, 12, 1)
    before, after = weights_of(base), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {str(to_diffusers(f"{layer}.weight")) for layer in LAYERS}
    for name, value in before.items():
        if name not in changed:
            assert torch.equal(after[name], value), name
            continue
        (a, b) = (
            next(value for key, value in updates.items() if key.endswith(end) and bare(key) == name)
            for end in ("lora_A.weight", "lora_B.weight")
        )
        torch.testing.assert_close(after[name], value + SCALE * b @ a)
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert f"0.5 lora.{form}" in manifest


def test_the_command_takes_an_adapter_and_its_scale(updates: dict[str, Tensor], base: Path, tmp_path: Path) -> None:
    path, options = write_adapter(updates, tmp_path), ("--height", 32, "--width", 48, "--precision", "no")
    hiar("import", base, "--base", base, "--as", "longlive", *options, "--out", "plain", folder=tmp_path)
    adapter = ("--lora", path, "--lora-scale", SCALE)
    options = (*options, "--sinks-turn")
    hiar("import", base, "--base", base, "--as", "longlive", *options, *adapter, "--out", "added", folder=tmp_path)
    assert [load_card(tmp_path / name).conventions.sinks for name in ("plain", "added")] == ["stay", "turn"]
    plain, added = weights_of(tmp_path / "plain"), weights_of(tmp_path / "added")
    expected = add_lora(read_sharded(base / "transformer", "diffusion_pytorch_model"), path, SCALE)
    assert all(torch.equal(value, expected[name].load()) for name, value in added.items())
    assert {name for name in plain if not torch.equal(plain[name], added[name])} == {
        str(to_diffusers(f"{layer}.weight")) for layer in LAYERS
    }


def bare(key: str) -> str:
    """The diffusers name of the weight that a name of the adapter belongs to."""
    name = key.removeprefix("base_model.model.").replace("_fsdp_wrapped_module.", "")
    return str(to_diffusers(re.sub(r"lora_[AB]\.", "", name)))


def test_names_of_diffusers_and_of_one_adapter_among_several_are_known(
    updates: dict[str, Tensor], base: Path, tmp_path: Path
) -> None:
    """As in peft's own files: `default` is the adapter's name."""
    theirs = {}
    for key, value in updates.items():
        factor = "lora_A" if "lora_A" in key else "lora_B"
        theirs[f"transformer.{bare(key).removesuffix('.weight')}.{factor}.default.weight"] = value
    tensors = read_sharded(base / "transformer", "diffusion_pytorch_model")
    one, other = (
        add_lora(tensors, write_adapter(adapter, tmp_path, form), SCALE)
        for adapter, form in ((updates, "pt"), (theirs, "safetensors"))
    )
    for layer in LAYERS:
        name = str(to_diffusers(f"{layer}.weight"))
        assert torch.equal(one[name].load(), other[name].load())
        assert not torch.equal(one[name].load(), tensors[name].load())


def test_half_precision_is_rounded_once(updates: dict[str, Tensor], base: Path, tmp_path: Path) -> None:
    stored = read_sharded(base / "transformer", "diffusion_pytorch_model")
    half = tmp_path / "half"
    half.mkdir()
    save_file({name: value.bfloat16() for name, value in weights_of(base).items()}, half / "model.safetensors")
    tensors = read_sharded(half, "model")
    halves = {name: value.bfloat16() for name, value in updates.items()}
    added = add_lora(tensors, write_adapter(halves, tmp_path), SCALE)
    name = str(to_diffusers(f"{LAYERS[0]}.weight"))
    (a, b) = (value.float() for key, value in halves.items() if bare(key) == name)
    assert stored[name].dtype is torch.float32
    assert torch.equal(added[name].load(), (tensors[name].load().float() + SCALE * (b @ a)).bfloat16())


def without(end: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda adapter: {name: value for name, value in adapter.items() if not name.endswith(end)}


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (without("q.lora_B.weight"), r"has only one of lora_A and lora_B of blocks\.0\.attn1\.to_q\.weight; copy it"),
        (
            lambda adapter: {name.replace("blocks.0.", "blocks.7."): value for name, value in adapter.items()},
            r"blocks\.7\.attn1\.to_q\.weight: is not a weight of the source's transformer; name the model it was",
        ),
        (
            lambda adapter: {name: value[:, :-1] if "lora_A" in name else value for name, value in adapter.items()},
            r"blocks\.0\.attn1\.to_q\.weight: lora_A \[3, 47\] and lora_B \[48, 3\] for a weight \[48, 48\]; name",
        ),
        (
            lambda adapter: {name: value[:, :-1] if "lora_B" in name else value for name, value in adapter.items()},
            r"blocks\.0\.attn1\.to_q\.weight: lora_A \[3, 48\] and lora_B \[48, 2\] for a weight \[48, 48\]; name",
        ),
        (
            lambda adapter: {name.replace("lora_A", "lora_down"): value for name, value in adapter.items()},
            r"lora_down\.weight, which is not peft's lora_A or lora_B; save the adapter with peft",
        ),
        (lambda adapter: {"generator_lora": [adapter]}, r"generator_lora is not a dense tensor but list"),
    ],
    ids=["half", "other depth", "other width", "other rank", "other program", "no tensors"],
)
def test_adapters_that_do_not_fit_the_model_are_refused(
    spoil: Spoil,
    line: str,
    updates: dict[str, Tensor],
    base: Path,
    tmp_path: Path,
) -> None:
    adapter = {name.replace("_fsdp_wrapped_module.", ""): value for name, value in updates.items()}
    path = write_adapter(spoil(adapter), tmp_path)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: .*{line}"):
        add_lora(read_sharded(base / "transformer", "diffusion_pytorch_model"), path, 1.0)


def test_original_names_are_one_to_one_for_every_layer_an_adapter_may_have(base: Path) -> None:
    linear = [name for name, value in weights_of(base).items() if ".blocks." in f".{name}" and value.ndim == 2]
    assert all(to_diffusers(str(to_original(name))) == name for name in linear if name.endswith(".weight"))
