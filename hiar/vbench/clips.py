"""VBench-Long's clips: a long video cut into pieces of two or ten seconds, which VBench scores like videos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av

from hiar.errors import UserError
from hiar.io.files import remove, sync, writing
from hiar.vbench.dimensions import CLIP_SECONDS, DIMENSIONS


def clip_seconds(dimensions: Iterable[str]) -> int:
    """How long the clips of a suite's prompt are: the longest that one of its dimensions looks at."""
    return max((DIMENSIONS[name].clip_seconds for name in dimensions), default=CLIP_SECONDS)


def clip_frames(frames: int, fps: float, seconds: int) -> list[range]:
    """The frames of each clip of a video, as VBench-Long cuts.

    Clips follow one another; the last one reaches back so as to be as long as the others, and a shorter video is one
    clip. A rate is rounded down.
    """
    length = int(fps) * seconds
    if frames < length:
        return [range(frames)]
    clips = [range(first, first + length) for first in range(0, frames - length + 1, length)]
    return clips if clips[-1].stop == frames else [*clips, range(frames - length, frames)]


def cut(video: Path, clips: list[range], rate: int, folder: Path) -> list[Path]:
    """Write the clips of a video into ``folder``, which is there afterwards with all of them, or not at all.

    They are encoded as VBench-Long encodes them: h264 with x264's own settings. What is there already is whole, so
    ``folder`` should be named by what the video holds. Raises UserError for frames of odd size.
    """
    paths = [folder / f"{number:03d}.mp4" for number in range(len(clips))]
    if folder.is_dir():
        return paths
    partial = folder.with_name(f"{folder.name}.partial")
    with writing(partial):
        remove(partial)
        partial.mkdir(parents=True)
        for part, path in zip(clips, paths, strict=True):
            _write(video, part, rate, partial / path.name)
        partial.rename(folder)
    return paths


def _write(video: Path, part: range, rate: int, to: Path) -> None:
    # Each clip decodes the video from its start: exact for every file, and no more than a clip is in memory.
    with av.open(video) as source, av.open(to, "w", "mp4") as target:
        stream = target.add_stream("libx264", rate=rate, pix_fmt="yuv420p")
        for number, frame in enumerate(source.decode(video=0)):
            if number >= part.stop:
                break
            if number < part.start:
                continue
            if frame.width % 2 or frame.height % 2:
                raise UserError(
                    f"{video}: is {frame.width}x{frame.height} pixels: cut it to even sizes, h264 clips have no other"
                )
            stream.width, stream.height = frame.width, frame.height
            pixels = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
            target.mux(stream.encode(pixels))
        target.mux(stream.encode())
    sync(to)
