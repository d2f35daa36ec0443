"""Clips to go on from: which pictures of them are taken, and in what size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from hiar.errors import UserError
from hiar.io.video import write_mp4
from hiar.worlds.wan.clips import fitted, read_clip, read_image, whole_blocks

HERE = Path("clip.mp4")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 grey pictures of 64x48 pixels, of which each is brighter than the one before."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_mp4(path, (torch.arange(50) * 5).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 48, 64, 3), fps=16)
    return path


def _numbers(frames: Tensor) -> list[int]:
    """Which pictures of the clip they are, by their brightness."""
    return [round(float(frame.float().mean()) / 5) for frame in frames]


@pytest.mark.parametrize(
    ("block", "most", "taken"),
    [(3, 9, 45), (3, 2, 21), (1, 99, 49), (13, 1, 49), (12, 5, 45)],  # 50 pictures make 13 latent frames
)
def test_the_last_whole_blocks_are_taken_and_the_rest_told(
    clip: Path, block: int, most: int, taken: int, capfd: pytest.CaptureFixture[str]
) -> None:
    frames = read_clip(clip, 48, 64, block=block, most=most, resize=False)
    assert frames.shape == (taken, 48, 64, 3)
    assert _numbers(frames) == list(range(50 - taken, 50))
    assert f"of its 50 pictures the first {50 - taken} are left out" in capfd.readouterr().err


@pytest.mark.parametrize(("pictures", "block", "blocks"), [(1, 1, 1), (9, 3, 1), (20, 3, 1), (21, 3, 2), (81, 3, 7)])
def test_blocks_are_counted_with_a_first_frame_of_one_picture(pictures: int, block: int, blocks: int) -> None:
    assert whole_blocks(pictures, block, HERE) == blocks


@pytest.mark.parametrize(("pictures", "block", "needed"), [(0, 1, 1), (1, 3, 9), (8, 3, 9)])
def test_a_clip_that_is_too_short_is_refused(pictures: int, block: int, needed: int) -> None:
    with pytest.raises(UserError, match=rf"^clip.mp4: has {pictures} pictures: .* takes {needed}; give a longer clip$"):
        whole_blocks(pictures, block, HERE)


def test_another_size_is_refused_or_cut_to_the_middle(clip: Path) -> None:
    with pytest.raises(UserError, match=r"clip.mp4: has 64x48 pixels: should have 32x32; resize it, or ask for that$"):
        read_clip(clip, 32, 32, block=1, most=1, resize=False)
    frames = read_clip(clip, 32, 32, block=1, most=2, resize=True)
    assert frames.shape == (5, 32, 32, 3)
    assert _numbers(frames) == [45, 46, 47, 48, 49]


@pytest.mark.parametrize(("height", "width"), [(40, 40), (20, 120), (90, 30), (7, 200)])
def test_pictures_are_scaled_until_they_cover_and_stay_centred(height: int, width: int) -> None:
    ramps = torch.stack([torch.linspace(0, 255, 60).repeat(40, 1), torch.linspace(0, 255, 40)[:, None].repeat(1, 60)])
    frames = torch.cat([ramps, ramps[:1]]).round().to(torch.uint8).movedim(0, -1)[None]
    out = fitted(frames, height, width, resize=True, what=HERE)
    assert out.shape == (1, height, width, 3)
    middle = out.float().flip(1, 2) + out.float()  # a ramp that stays centred is its own opposite
    assert (middle[..., :2] - 255).abs().max() <= 3
    horizontal, vertical = out[0, 0, :, 0].float(), out[0, :, 0, 1].float()
    scale = max(height / 40, width / 60)
    assert abs((horizontal[-1] - horizontal[0]) - 255 * width / (60 * scale)) < 12
    assert abs((vertical[-1] - vertical[0]) - 255 * height / (40 * scale)) < 12


def test_pictures_of_the_size_wanted_are_untouched() -> None:
    frames = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(fitted(frames, 8, 8, resize=True, what=HERE), frames)


def test_an_image_is_read_as_it_is_shown(tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2))
    image.putdata([(10 * n, 0, 255) for n in range(6)])
    image.save(tmp_path / "plain.png")
    assert read_image(tmp_path / "plain.png", 2, 3, resize=False)[0, :, :, 0].tolist() == [[0, 10, 20], [30, 40, 50]]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 3, 2, resize=False)[0, :, :, 0].tolist() == [[30, 0], [40, 10], [50, 20]]


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_what_is_no_image_is_one_line(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*a.png: no such picture; name another$"):
        read_image(tmp_path / "a.png", 2, 3, resize=False)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"^[^\n]*a.png: is no picture that can be read \([^\n]*\); save it as"):
        read_image(tmp_path / "a.png", 2, 3, resize=False)
