"""Videos are read back as written, up to h264's losses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.io.reading import read_head
from hiar.io.video import read_mp4, write_mp4


def moving_disc(frames: int, height: int, width: int) -> Tensor:
    """A saturated disc crossing a dark ground, uint8 (frames, height, width, 3)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    centre = torch.linspace(0, width, frames)[:, None, None]
    inside = (rows - height / 2) ** 2 + (columns - centre) ** 2 < (min(height, width) / 4) ** 2
    return torch.where(inside[..., None], torch.tensor([230, 40, 60]), torch.tensor([20, 30, 70])).to(torch.uint8)


def psnr(video: Tensor, reference: Tensor) -> float:
    error = (video.float() - reference.float()).square().mean()
    return float(10 * torch.log10(255**2 / error))


@pytest.mark.parametrize(
    ("height", "width", "least"),
    [
        (64, 64, 42),
        (33, 65, 42),
        (8, 8, 42),
        (1, 1, 30),
        (192, 256, 35),
        (193, 195, 35),
        (192, 195, 35),
        (193, 196, 35),
    ],
)
def test_a_video_comes_back_at_its_size_with_little_lost(height: int, width: int, least: float, tmp_path: Path) -> None:
    video = moving_disc(9, height, width)
    write_mp4(tmp_path / "new" / "v.mp4", video, 12)
    back = read_mp4(tmp_path / "new" / "v.mp4")
    assert back.dtype == torch.uint8
    assert back.shape == video.shape
    assert psnr(back, video) > least


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(192, 256, 1), (256, 192, 1), (190, 256, 2), (193, 256, 2), (256, 193, 2), (96, 400, 2), (95, 400, 4)],
)
def test_only_frames_that_are_small_or_odd_are_enlarged(height: int, width: int, factor: int, tmp_path: Path) -> None:
    write_mp4(tmp_path / "v.mp4", moving_disc(1, height, width), 12)
    with av.open(tmp_path / "v.mp4") as container:
        codec = container.streams.video[0].codec_context
        assert (codec.height, codec.width) == (factor * height, factor * width)


def test_a_file_plays_in_browsers_and_is_enlarged(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write_mp4(path, moving_disc(5, 64, 64), 12)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.profile) == ("h264", "Constrained Baseline")
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.codec_context.width, stream.codec_context.height) == (256, 256)
        assert (stream.frames, stream.average_rate) == (5, 12)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can play before it has the whole file


@pytest.mark.parametrize("fps", [12.5, 24000 / 1001, 30000 / 1001])
def test_a_rate_that_is_no_whole_number_is_kept(fps: float, tmp_path: Path) -> None:
    write_mp4(tmp_path / "v.mp4", moving_disc(5, 64, 64), fps)
    assert read_head(tmp_path / "v.mp4").rate == pytest.approx(fps, rel=1e-9)


def test_bytes_are_the_same_in_every_process(tmp_path: Path) -> None:
    program = """
import pathlib, sys, torch
from hiar.io.video import write_mp4
frames = torch.load(sys.argv[1])
write_mp4(pathlib.Path(sys.argv[2]), frames, 12)
"""
    video = torch.randint(0, 256, (6, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.save(video, tmp_path / "frames.pt")
    write_mp4(tmp_path / "here.mp4", video, 12)
    arguments = [str(tmp_path / "frames.pt"), str(tmp_path / "there.mp4")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=600)
    assert (tmp_path / "here.mp4").read_bytes() == (tmp_path / "there.mp4").read_bytes()


def test_a_file_that_is_no_whole_video_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.mp4: no such video; "):
        read_mp4(tmp_path / "none.mp4")
    write_mp4(tmp_path / "v.mp4", moving_disc(30, 64, 64), 12)
    whole = (tmp_path / "v.mp4").read_bytes()
    for length in (0, 20, 300, len(whole) // 2, len(whole) - 2000):
        (tmp_path / "cut.mp4").write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.mp4: is (truncated|not a (readable )?video).*; make it again"):
            read_mp4(tmp_path / "cut.mp4")
    (tmp_path / "text.mp4").write_text("a red disc moves left")
    with pytest.raises(UserError, match=r"text\.mp4: is not a readable video"):
        read_mp4(tmp_path / "text.mp4")


def test_a_full_disk_leaves_the_old_video(small_disk: Path) -> None:
    path = small_disk / "v.mp4"
    write_mp4(path, moving_disc(3, 64, 64), 12)
    before = path.read_bytes()
    noise = torch.randint(0, 256, (60, 128, 128, 3), dtype=torch.uint8)
    with pytest.raises(UserError, match=r"v\.mp4: no space left on device; free some space"):
        write_mp4(path, noise, 12)
    assert path.read_bytes() == before
    assert [entry.name for entry in small_disk.iterdir()] == ["v.mp4"]
