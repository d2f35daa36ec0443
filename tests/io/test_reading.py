"""Videos by any software are read at their original size; a file's header is compared with its frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace

from hiar.errors import UserError
from hiar.io.reading import _shrink, read_head, read_parts


def pictures(path: Path, *streams: Sequence[tuple[int, int]], note: str = "") -> Path:
    """A file with a video stream of grey frames per list of (height, width); players choose the last stream."""
    with av.open(path, "w") as container:
        container.metadata["comment"] = note
        made = []
        for sizes in streams:
            height, width = sizes[0]
            stream = container.add_stream("mjpeg", 12, pix_fmt="yuvj420p", width=width, height=height)
            made.append((stream, sizes))
        stream.disposition = Disposition.default
        for stream, sizes in made:
            for number, (height, width) in enumerate(sizes):
                one = av.CodecContext.create("mjpeg", "w")
                one.width, one.height, one.pix_fmt, one.time_base = width, height, "yuvj420p", Fraction(1, 12)
                image = av.VideoFrame.from_ndarray(np.full((height, width, 3), 120, np.uint8), format="rgb24")
                image.pts = number
                for packet in one.encode(image.reformat(format="yuvj420p")):
                    packet.stream, packet.time_base = stream, Fraction(1, 12)
                    container.mux(packet)
    return path


@pytest.mark.parametrize("other", [(16, 32), (32, 16)])
def test_all_frames_are_of_one_size(tmp_path: Path, other: tuple[int, int]) -> None:
    assert len(next(read_parts(pictures(tmp_path / "same.mkv", [(32, 32)] * 3)))) == 3
    changes = pictures(tmp_path / "changes.mkv", [(32, 32), (32, 32), other])
    line = f"changes its size at frame 2 from 32x32 to {other[1]}x{other[0]} pixels; re-encode it at one size"
    with pytest.raises(UserError, match=line):
        list(read_parts(changes))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64)])
def test_a_recorded_enlargement_must_divide_both_sides(tmp_path: Path, height: int, width: int) -> None:
    head = read_head(pictures(tmp_path / "v.mp4", [(height, width)], note="enlarged 32 times"))
    assert (head.height, head.width) == (height // 32, width // 32)
    cannot = pictures(tmp_path / "cannot.mp4", [(height, width)], note="enlarged 48 times")
    line = re.escape(f"comment = 'enlarged 48 times': does not fit {width}x{height} pixels")
    with pytest.raises(UserError, match=line):
        read_head(cannot)


def test_of_several_videos_in_a_file_the_one_that_players_choose_is_read(tmp_path: Path) -> None:
    path = pictures(tmp_path / "two.mp4", [(16, 16)] * 2, [(64, 64)] * 3)
    assert read_head(path)[:2] == (64, 64)
    assert torch.cat(list(read_parts(path))).shape == (3, 64, 64, 3)


@pytest.mark.parametrize("levels", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize(
    ("named", "made"),
    [
        (Colorspace.ITU709, Colorspace.ITU709),
        (Colorspace.ITU601, Colorspace.ITU601),
        (2, Colorspace.ITU601),  # unspecified, as ffmpeg writes it by default
    ],
)
def test_colours_are_those_that_the_file_says_it_has(
    tmp_path: Path, named: int, made: Colorspace, levels: ColorRange
) -> None:
    """Other programs' videos may have another matrix or range than ours."""
    red = np.full((64, 64, 3), (200, 40, 60), np.uint8)
    with av.open(tmp_path / "red.mp4", "w") as container:
        stream = container.add_stream("libx264", 12, {"crf": "1"}, pix_fmt="yuv420p", width=64, height=64)
        stream.codec_context.colorspace, stream.codec_context.color_range = named, levels
        frame = av.VideoFrame.from_ndarray(red, format="rgb24")
        given = frame.reformat(format="yuv420p", dst_colorspace=made, dst_color_range=levels)
        container.mux([*stream.encode(given), *stream.encode()])
    (back,) = read_parts(tmp_path / "red.mp4")
    assert np.abs(back[0].numpy().astype(int) - red).max() <= 3


@pytest.mark.parametrize("scale", [1, 2, 3, 192])
def test_a_pixel_is_the_mean_of_what_it_was_enlarged_to(scale: int) -> None:
    """Rounded to the nearest level, halves up; white has the largest sum."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2 * scale, 3 * scale, 3), np.uint8)
    pixels[:scale, :scale] = 255
    pixels[scale:, :scale] = 0
    pixels[scale:, : scale // 2] = 1  # for even scales, half of it
    squares = pixels.reshape(2, scale, 3, scale, 3).astype(np.int64)
    expected = np.floor(squares.sum(axis=(1, 3)) / scale**2 + 0.5)
    assert np.array_equal(_shrink(pixels, scale), expected)
