"""Wan's codec part by part against diffusers' own on whole videos; sizes that diffusers would crop are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from tiny import live_tensor_bytes
from torch import Tensor

from hiar.errors import BrokenRule, UserError
from hiar.memory.counting import Counting
from hiar.memory.sampling import decode_bytes
from hiar.worlds.wan.codec import WanCodec, latent_frames, latent_size, load_codec, pixel_frames

WEIGHTS = Path("vae", "diffusion_pytorch_model.safetensors")
# height, width, latent frames, and how many of these are coded at a time
CASES = [(64, 96, 2, (1, 1)), (72, 88, 1, (1,)), (40, 56, 5, (2, 3)), (16, 24, 10, (3, 3, 3, 1)), (16, 24, 3, (3,))]


@pytest.fixture(scope="module")
def autoencoder(base: Path) -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(base / "vae").requires_grad_(False)


@pytest.fixture(scope="module")
def codec(base: Path) -> WanCodec:
    return load_codec(base)


@pytest.fixture
def broken(base: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    shutil.copytree(base / "vae", tmp_path / "vae")
    return tmp_path


def _statistics(autoencoder: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    config = autoencoder.config
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1, 1) for numbers in (config.latents_mean, config.latents_std))
    return mean, std


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width", "frames", "parts"), CASES)
def test_blocks_give_the_pictures_of_the_whole_video(
    autoencoder: AutoencoderKLWan, codec: WanCodec, height: int, width: int, frames: int, parts: tuple[int, ...]
) -> None:
    latents = _normal(1, 16, frames, *latent_size(height, width))
    decode = codec.decoding()
    video = torch.cat([decode(part) for part in latents.split(parts, dim=2)], dim=2)
    assert video.shape == (1, 3, pixel_frames(frames), height, width)
    mean, std = _statistics(autoencoder)
    assert video.std() > 0.1
    torch.testing.assert_close(video, autoencoder.decode(latents * std + mean).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "frames", "parts"), CASES)
def test_parts_give_the_latents_of_the_whole_clip(
    autoencoder: AutoencoderKLWan, codec: WanCodec, height: int, width: int, frames: int, parts: tuple[int, ...]
) -> None:
    video = _normal(1, 3, pixel_frames(frames), height, width).clamp(-1, 1)
    mean, std = _statistics(autoencoder)
    theirs = (autoencoder.encode(video).latent_dist.mode() - mean) / std
    assert theirs.std() > 0.3
    encode = codec.encoding()
    pictures = [pixel_frames(parts[0]), *(4 * part for part in parts[1:])]
    ours = torch.cat([encode(part) for part in video.split(pictures, dim=2)], dim=2)
    assert ours.shape == (1, 16, frames, *latent_size(height, width))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert torch.equal(codec.encode(video), ours)


def test_interleaved_videos_do_not_affect_each_other(codec: WanCodec) -> None:
    latents = _normal(2, 16, 4, 2, 3)
    alone = []
    for video in latents.split(1):
        decode = codec.decoding()
        alone.append(torch.cat([decode(part) for part in video.split(2, 2)], 2))
    one, other = codec.decoding(), codec.decoding()
    turns = [(one(part[:1]), other(part[1:])) for part in latents.split(2, 2)]
    for video, parts in zip(alone, zip(*turns, strict=True), strict=True):
        assert torch.equal(torch.cat(parts, 2), video)


def test_a_long_video_takes_no_more_memory_than_a_short_one(codec: WanCodec) -> None:
    encode, decode = codec.encoding(), codec.decoding()
    held = []
    for pictures in (9, 4 * 6):
        decode(encode(torch.zeros(1, 3, pictures, 16, 24)))
        held.append(live_tensor_bytes())
    assert held[0] == held[1]


@torch.no_grad()
def test_decoding_takes_what_was_predicted(codec: WanCodec) -> None:
    """Later blocks make more frames than the first, and use the state left by earlier ones."""
    most, left = decode_bytes(SimpleNamespace(latent_size=(codec.channels, 4, 6), codec=codec), 3)  # type: ignore
    count, decode = Counting(), codec.decoding()
    with count:
        for part in _normal(1, codec.channels, 12, 4, 6).split(3, dim=2):
            with count.phase("block"):
                decode(part)
            with count.phase("between"):
                pass
    assert count.peaks == pytest.approx({"block": most, "between": left}, rel=0.02)
    assert 0 < left < most


def test_the_codec_computes_in_bf16(base: Path, codec: WanCodec) -> None:
    latents = _normal(1, 16, 2, 2, 3)
    video = load_codec(base).to(torch.bfloat16).decoding()(latents.bfloat16())
    assert video.dtype == torch.bfloat16
    assert (video - codec.decoding()(latents)).abs().mean() < 0.02


def test_latent_and_pixel_frame_counts_invert_each_other() -> None:
    assert [pixel_frames(frames) for frames in (1, 2, 21)] == [1, 5, 81]
    assert all(latent_frames(pixel_frames(frames)) == frames for frames in range(1, 50))


@pytest.mark.parametrize(("frames", "remedy"), [(0, "1 or 5"), (2, "1 or 5"), (4, "1 or 5"), (80, "77 or 81")])
def test_pictures_that_would_be_dropped_are_refused(codec: WanCodec, frames: int, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"^video: pictures = {frames}: should be 4n \+ 1, .*; give {remedy}$"):
        codec.encode(torch.zeros(1, 3, frames, 16, 16))


def test_later_parts_are_whole_latent_frames(codec: WanCodec) -> None:
    encode = codec.encoding()
    encode(torch.zeros(1, 3, 5, 16, 16))
    with pytest.raises(UserError, match=r"^video: pictures"):
        encode(torch.zeros(1, 3, 5, 16, 16))


@pytest.mark.parametrize(
    ("height", "width", "name"), [(44, 64, "height = 44"), (64, 100, "width = 100"), (0, 64, "height")]
)
def test_pixels_that_would_be_cropped_are_refused(codec: WanCodec, height: int, width: int, name: str) -> None:
    with pytest.raises(UserError, match=rf"^video: {name}.*: should be a multiple of 8 pixels; resize it"):
        codec.encode(torch.zeros(1, 3, 1, height, width))


def test_a_latent_pixel_is_eight_by_eight() -> None:
    assert latent_size(480, 832) == (60, 104)
    with pytest.raises(BrokenRule, match=r"^width = 844: should be a multiple of 8 pixels; .*to 840$"):
        latent_size(480, 844)


@pytest.mark.parametrize("edit", ["missing", "unexpected", "finite"])
def test_weights_that_are_not_exactly_the_codecs_are_refused(broken: Path, edit: str) -> None:
    weights = load_file(broken / WEIGHTS)
    bias = weights.pop("quant_conv.bias")
    weights |= {
        "missing": {},
        "unexpected": {"quant_conv.bias": bias, "more": bias.clone()},
        "finite": {"quant_conv.bias": bias / 0},
    }[edit]
    save_file(weights, broken / WEIGHTS)
    with pytest.raises(UserError, match=rf"^[^\n]*vae: [^\n]*{edit}[^\n]*$"):
        load_codec(broken)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("temperal_downsample", [False, True, False], "a latent frame is 2 pictures"),
        ("is_residual", True, "a latent frame is 4 pictures and a latent pixel 8x8 pixels: Wan2"),
        ("latents_std", [1.0] * 15, "latents_std: has 15 numbers: z_dim is 16"),
        ("dim_mult", [1, 2, 4], "cannot be loaded"),
    ],
)
def test_another_codec_is_refused(broken: Path, field: str, value: list[float], line: str) -> None:
    path = broken / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    if field in ("temperal_downsample", "is_residual"):  # these change the layers' weights
        AutoencoderKLWan.from_config(json.loads(path.read_text())).save_pretrained(broken / "vae")
    with pytest.raises(UserError, match=rf"^[^\n]*{line}[^\n]*$"):
        load_codec(broken)
