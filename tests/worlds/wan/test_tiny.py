"""The tiny Wan: diffusers' own pipeline runs it, and its inputs change its output."""

from __future__ import annotations

import filecmp
import unicodedata
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from torch import Tensor

from hiar.errors import UserError
from hiar.worlds.wan.pretrained import quiet
from hiar.worlds.wan.text import load_tokenizer
from hiar.worlds.wan.tiny import SENTENCES, make_tiny_wan

WEIGHTS = (
    "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


@pytest.fixture(scope="module")
def pipeline(base: Path) -> WanPipeline:
    pipeline = WanPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _video(pipeline: WanPipeline, prompt: str, seed: int) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    size = {"height": 32, "width": 48, "num_frames": 5}
    return pipeline(prompt, num_inference_steps=2, guidance_scale=1, generator=noise, output_type="pt", **size).frames


def test_prompts_and_noise_show_in_its_videos(pipeline: WanPipeline) -> None:
    video = _video(pipeline, SENTENCES[0], seed=0)
    assert video.shape == (1, 5, 3, 32, 48)
    assert video.std() > 0.1
    assert torch.equal(video, _video(pipeline, SENTENCES[0], seed=0))
    for other in (_video(pipeline, SENTENCES[1], seed=0), _video(pipeline, SENTENCES[0], seed=1)):
        assert (other - video).std() > 0.1 * video.std()


def test_the_seed_decides_every_byte(base: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_tiny_wan(tmp_path / str(seed), seed)
    names = [str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()]
    assert filecmp.cmpfiles(base, tmp_path / "0", names, shallow=False) == (names, [], [])
    for name in WEIGHTS:
        first, other = load_file(base / name), load_file(tmp_path / "1" / name)
        assert not all(torch.equal(first[key], other[key]) for key in first), name


@pytest.mark.parametrize(
    "text", ["A red panda", "Straße, œuvre, ﬁn", "🐼👩‍🚀", "ئۇيغۇر ไทย 한국어", "\x01\x7f \U0010fffd"]
)
def test_its_tokenizer_spells_any_text(base: Path, text: str) -> None:
    tokenizer = load_tokenizer(base)
    assert tokenizer.decode(tokenizer.encode(text).ids) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("bars", [True, False])
def test_quiet_restores_the_libraries_verbosity(bars: bool) -> None:
    before = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    try:
        diffusers_logging.set_verbosity_info()
        (diffusers_logging.enable_progress_bar if bars else diffusers_logging.disable_progress_bar)()
        with quiet():
            assert diffusers_logging.get_verbosity() > diffusers_logging.ERROR
            assert not diffusers_logging.is_progress_bar_enabled()
        assert diffusers_logging.get_verbosity() == diffusers_logging.INFO
        assert diffusers_logging.is_progress_bar_enabled() == bars
    finally:
        diffusers_logging.set_verbosity(before[0])
        (diffusers_logging.enable_progress_bar if before[1] else diffusers_logging.disable_progress_bar)()


def test_no_folder_is_overwritten(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match=r"mine: holds files .*choose a new folder"):
        make_tiny_wan(tmp_path / "mine", 0)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "notes.txt"]
