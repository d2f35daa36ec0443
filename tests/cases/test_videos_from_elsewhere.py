"""Folders of other people's videos, given to `hiar score`: read as a player shows them, or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from sampled import ROOT
from torch import Tensor

from hiar.cli import main
from hiar.io.reading import read_parts
from hiar.io.video import read_mp4, write_mp4
from hiar.parameters import load_params
from hiar.worlds.shapes.render import clips

PARAMS = load_params(ROOT / "params.yaml")
FRAMES = 20
CLIPS, CAPTIONS = clips(PARAMS.world, seed=5, first=0, count=12, frames=FRAMES)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three of our videos without a manifest, in a project."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_mp4(tmp_path / "videos" / f"{number:04d}.mp4", CLIPS[number], 12)
    caption(tmp_path / "videos", CAPTIONS[:3])
    return tmp_path / "videos"


def caption(folder: Path, lines: list[str]) -> None:
    (folder / "captions.txt").write_text("".join(f"{line}\n" for line in lines))


def score(capsys: pytest.CaptureFixture[str]) -> str:
    """The figures from the command line, or its error line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hiar", "score", "videos", "--out", "out.json"])
        with pytest.raises(SystemExit) as end:
            main()
    stderr = capsys.readouterr().err
    if end.value.code == 0:
        assert "error" not in stderr
        return json.dumps(json.loads(Path("out.json").read_text())["oracle"]["metrics"])
    assert end.value.code == 2
    assert not Path("out.json").exists()
    (line,) = [line for line in stderr.splitlines() if not line.startswith("score ")]
    return line.removeprefix("error: ")


def good(capsys: pytest.CaptureFixture[str]) -> float:
    return float(json.loads(score(capsys))["good"]["mean"])


def encode(
    path: Path,
    frames: Tensor,
    *,
    pixels: str = "yuv444p",
    muxer: str = "mp4",
    note: str | None = None,
    hidden: int = 0,
    codec: str = "libx264",
    prepare: Callable[[Any, Any], None] = lambda container, stream: None,
) -> None:
    """Write a video as other software does; ``hidden`` frames lie before time 0, as after a lossless cut."""
    options = {"movflags": "+faststart"} if muxer == "mp4" else {}
    with av.open(path, "w", muxer, options=options) as container:
        if note is not None:
            container.metadata["comment"] = note
        height, width = frames.shape[1:3]
        stream = container.add_stream(
            codec, 12, {"qp": "0", "bf": "0"} if codec == "libx264" else {}, pix_fmt=pixels, width=width, height=height
        )
        stream.time_base = Fraction(1, 12)
        prepare(container, stream)
        packets = [
            packet
            for image in [*frames.numpy(), None]
            for packet in stream.encode(None if image is None else av.VideoFrame.from_ndarray(image, format="rgb24"))
        ]
        for packet in packets:
            shift = int(hidden / 12 / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            container.mux(packet)


def cut(path: Path) -> None:
    """Cut a file so that its header remains, but no decodable frame."""
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4])


def test_sizes_captions_and_lengths_are_checked_before_a_frame_is_decoded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.glob("*.mp4"):
        cut(path)
    assert score(capsys) == "videos: 3 of 3 videos cannot be scored (see above); fix or remove them"
    caption(folder, [*CAPTIONS[:2], "a red cow moves"])
    assert "unknown word 'cow'" in score(capsys)
    caption(folder, CAPTIONS[:3])
    write_mp4(folder / "0002.mp4", CLIPS[2, :12], 12)
    assert score(capsys).startswith("videos/0002.mp4: is 12 frames of 64x64, 0000.mp4 20 frames of 64x64; use")
    encode(folder / "0002.mp4", torch.zeros(2, 128, 96, 3, dtype=torch.uint8))
    assert score(capsys).startswith("videos/0002.mp4: is 2 frames of 96x128, 0000.mp4 20 frames of 64x64; use")
    encode(folder / "0000.mp4", torch.zeros(2, 1080, 1920, 3, dtype=torch.uint8), pixels="yuv420p")
    cut(folder / "0000.mp4")
    assert score(capsys).startswith("videos: videos are 1920x1080 pixels, the world 64x64; use")
    for path in folder.glob("*.mp4"):
        write_mp4(path, CLIPS[0, :3], 12)
        cut(path)
    assert score(capsys) == "videos: videos have 3 frames, scoring needs 5; make longer ones"


def test_lengths_without_a_header_are_checked_while_decoding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, length in enumerate((FRAMES, FRAMES, 12)):
        encode(folder / f"{number:04d}.mp4", CLIPS[number, :length], muxer="matroska")
    assert score(capsys) == "videos/0002.mp4: is 12 frames, 0000.mp4 20 frames; use one length"
    encode(folder / "0000.mp4", CLIPS[0, :12], muxer="matroska")
    assert score(capsys) == "videos/0001.mp4: is 20 frames, 0000.mp4 12 frames; use one length"
    encode(folder / "0000.mp4", CLIPS[0], muxer="matroska")
    encode(folder / "0002.mp4", CLIPS[2, :4], muxer="matroska")
    assert score(capsys) == "videos/0002.mp4: has 4 frames, oracle needs 5; make it longer or leave it out"
    encode(folder / "0002.mp4", CLIPS[2], muxer="matroska")
    assert good(capsys) == 1


def test_parts_of_a_long_video_make_the_whole(tmp_path: Path) -> None:
    video, _ = clips(PARAMS.world, seed=1, first=0, count=1, frames=100)
    write_mp4(tmp_path / "v.mp4", video[0], 12)
    parts = list(read_parts(tmp_path / "v.mp4", 32))
    assert [len(part) for part in parts] == [32, 32, 32, 4]
    assert torch.equal(torch.cat(parts), read_mp4(tmp_path / "v.mp4"))


@pytest.mark.parametrize("names", ["{}.mp4", "clip-{}.mp4", "{:02d}.MP4"])
def test_captions_belong_to_videos_by_number(
    names: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder)
    for number, clip in enumerate(CLIPS, start=1):
        write_mp4(folder / names.format(number), clip, 12)
    caption(folder, CAPTIONS)
    assert good(capsys) == 1


@pytest.mark.parametrize(
    ("first", "second"), [("1.mp4", "01.mp4"), ("a.mp4", "A.mp4"), ("B.mp4", "a.mp4"), ("1.mp4", "1.MP4")]
)
def test_an_ambiguous_order_of_videos_is_refused(
    first: str, second: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "0001.mp4").rename(folder / first)
    (folder / "0002.mp4").rename(folder / second)
    line = score(capsys)
    assert "is ambiguous" in line
    assert line.endswith("number videos with equally many digits, such as 0000.mp4, in the order of their captions")


def add_finder_files(folder: Path) -> None:
    for path in list(folder.iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" + b"\0" * 20)
    (folder / ".hidden.mp4").write_text("no video")


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


def rewrite(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "captions.txt"
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: rewrite(f, lambda text: b"\xef\xbb\xbf" + text),
        lambda f: rewrite(f, lambda text: text.replace(b"\n", b"\r\n")),
        lambda f: rewrite(f, lambda text: text + b"\n \r\n"),
        lambda f: rewrite(f, lambda text: text.replace(b" ", "\u2028".encode(), 1)),
        lambda f: rewrite(f, lambda text: text.replace(b" ", b" \v\f\x1c\x1d \xc2\x85", 2).rstrip()),
        lambda f: rename(f, "captions.txt", "Captions.TXT"),
        lambda f: rename(f, "0001.mp4", "0001.MP4"),
        add_finder_files,
        lambda f: (f / "0003.mp4").mkdir(),
        lambda f: (rename(f, "0002.mp4", "../real"), (f / "0002.mp4").symlink_to("../real")),
    ],
    ids=["bom", "crlf", "blank-end", "U+2028", "odd-spaces", "Captions.TXT", "MP4", "finder", "sub-folder", "link"],
)
def test_folders_as_other_systems_leave_them_are_scored(
    change: Callable[[Path], object], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder)
    assert good(capsys) == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda f: shutil.copy(f / "captions.txt", f / "CAPTIONS.txt"), "there is captions.txt too; keep one of them"),
        (lambda f: rewrite(f, lambda text: text.replace(b"\n", b"\n\n", 1)), "captions.txt: holds an empty line"),
        (lambda f: (f / "0003.mp4").symlink_to("nowhere"), "holds 3 captions for 4 videos"),
        (lambda f: rewrite(f, lambda text: text.decode().encode("utf-16")), "captions.txt: is not UTF-8"),
        (lambda f: (f / "0002.mp4").write_bytes(b""), "0002.mp4: is not a readable video"),
        (lambda f: (rename(f, "0002.mp4", "real"), os.mkfifo(f / "0002.mp4")), "0002.mp4: is not a regular file"),
        (
            lambda f: (rename(f, "0002.mp4", "x"), (f / "0002.mp4").symlink_to("0002.mp4")),
            "0002.mp4: is not a readable video",
        ),
    ],
    ids=["two-captions", "blank-between", "dangling", "utf-16", "empty", "pipe", "loop"],
)
def test_ambiguous_or_broken_folders_are_refused(
    change: Callable[[Path], object], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder)
    assert line in score(capsys)


@pytest.mark.parametrize(
    ("size", "note"), [(64, "0"), (64, "3"), (64, "9" * 5000), (64, "-1"), (64, "1.5"), (64, "64 x"), (384, "384")]
)
def test_an_impossible_enlargement_comment_is_refused(
    size: int, note: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(folder / "0000.mp4", torch.zeros(2, size, size, 3, dtype=torch.uint8), note=f"enlarged {note} times")
    line = score(capsys)
    assert line.startswith("videos/0000.mp4: comment = 'enlarged ")
    assert line.endswith(f": does not fit {size}x{size} pixels; delete the comment or make it again")
    assert len(line) < 200


def set_rotation(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a matrix (a, b, c, d) into a video's header, by which players rotate it."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    one, (a, b, c, d) = 1 << 16, matrix
    data[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "stored"),
    [
        ((0, 1, -1, 0), lambda clip: clip.rot90(1, (1, 2))),  # players rotate it clockwise
        ((0, -1, 1, 0), lambda clip: clip.rot90(-1, (1, 2))),
        ((-1, 0, 0, -1), lambda clip: clip.flip(1, 2)),
        ((-1, 0, 0, 1), lambda clip: clip.flip(2)),
    ],
    ids=["clockwise", "counterclockwise", "upside-down", "mirrored"],
)
def test_a_video_is_rotated_as_its_header_says(
    matrix: tuple[int, int, int, int], stored: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    encode(tmp_path / "plain.mp4", CLIPS[0])
    encode(tmp_path / "turned.mp4", stored(CLIPS[0]).contiguous())
    set_rotation(tmp_path / "turned.mp4", matrix)
    assert torch.equal(read_mp4(tmp_path / "turned.mp4"), read_mp4(tmp_path / "plain.mp4"))


def test_frames_that_an_edit_list_leaves_out_are_not_counted_as_missing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer, _ = clips(PARAMS.world, seed=5, first=0, count=3, frames=FRAMES + 7)
    for number, clip in enumerate(longer):
        encode(folder / f"{number:04d}.mp4", clip, hidden=7)
    assert good(capsys) == 1
    shown = read_mp4(folder / "0000.mp4")
    assert len(shown) == FRAMES
    assert (shown.float() - longer[0, 7:].float()).abs().mean() < 2
    cut(folder / "0000.mp4")
    assert score_again(capsys) == f"videos/0000.mp4: is truncated (0 of {FRAMES} frames); make it again"


def score_again(capsys: pytest.CaptureFixture[str]) -> str:
    Path("out.json").unlink()
    return score(capsys)


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuvj420p", "yuv422p"])
def test_other_pixel_formats_are_scored(pixels: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        large = CLIPS[number].repeat_interleave(4, 1).repeat_interleave(4, 2)
        encode(folder / f"{number:04d}.mp4", large, pixels=pixels, note="enlarged 4 times")
    assert good(capsys) == 1


def make_cover(container: Any, stream: Any) -> None:
    stream.disposition = Disposition.attached_pic


def widen_pixels(container: Any, stream: Any) -> None:
    stream.codec_context.sample_aspect_ratio = Fraction(2, 1)


def test_pixels_that_are_not_square_and_a_lone_cover_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(folder / "0000.mp4", CLIPS[0], prepare=widen_pixels)
    assert score(capsys) == "videos/0000.mp4: its pixels are 2 times as wide as high; re-encode it with square pixels"
    encode(folder / "0000.mp4", CLIPS[0, :1], codec="mjpeg", pixels="yuvj444p", prepare=make_cover)
    assert score(capsys) == "videos/0000.mp4: is not a video, it holds a cover picture; make it again"


def test_a_file_of_sound_alone_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with av.open(folder / "0000.mp4", "w") as container:
        stream = container.add_stream("aac", 44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert score(capsys) == "videos/0000.mp4: is not a video, it holds audio; make it again"


def test_a_video_whose_size_changes_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(Path(__file__).parent / "data" / "size-changes.mp4", folder / "0000.mp4")
    line = score(capsys)
    assert line == "videos/0000.mp4: changes its size at frame 15 from 64x64 to 32x32 pixels; re-encode it at one size"
