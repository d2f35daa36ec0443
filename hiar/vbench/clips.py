"""VBench-Long's clips: a long video cut into pieces of two or ten seconds, which VBench scores like videos."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import av
from av.container import OutputContainer
from av.video.stream import VideoStream

from hiar.errors import UserError
from hiar.io.files import remove, sync, writing
from hiar.vbench.dimensions import CLIP_SECONDS, DIMENSIONS

FIRST_FRAMES = "first-frames.mp4"  # beside a video's clips


def clip_seconds(dimensions: Iterable[str]) -> int:
    """Length of the clips for a prompt of the suite: the longest that one of its dimensions uses."""
    return max((DIMENSIONS[name].clip_seconds for name in dimensions), default=CLIP_SECONDS)


def clip_rate(fps: float) -> int:
    """Frames per second of a video's clips: the video's, rounded down, at least 1."""
    return max(1, int(fps))


def clip_frames(frames: int, fps: float, seconds: int) -> list[range]:
    """The frames of each clip of a video, cut as by VBench-Long.

    Clips follow one another; the last one reaches back to be as long as the others, and a video shorter than a clip is
    one clip. The frame rate is rounded down.
    """
    length = clip_rate(fps) * seconds
    if frames < length:
        return [range(frames)]
    clips = [range(first, first + length) for first in range(0, frames - length + 1, length)]
    return clips if clips[-1].stop == frames else [*clips, range(frames - length, frames)]


@contextmanager
def clip_folder(out: Path) -> Iterator[Path]:
    """The folder of clips while results are made, perhaps by several processes; the last one to end removes it.

    The next process uses what a killed one leaves.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".clips.lock").open("a+") as lock:  # NFS wants it open for reading and for writing, one for each kind
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield out / ".clips"
        with suppress(BlockingIOError):  # others still use it
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(out / ".clips")


def cut(video: Path, clips: list[range], rate: int, folder: Path) -> list[Path]:
    """Write the clips of a video into ``folder``, which appears only with all of them.

    Beside them is FIRST_FRAMES, a video of the first frame of each. All are encoded as by VBench-Long: h264 with x264's
    default settings. An existing folder is taken as complete, so its name should identify the video's content.
    Raises UserError for a truncated video and for odd sizes.
    """
    paths = [folder / f"{number:03d}.mp4" for number in range(len(clips))]
    if folder.is_dir():
        return paths
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    with writing(partial):
        remove(partial)
        partial.mkdir(parents=True)
        written = [partial / path.name for path in paths]
        _write_clips(video, clips, rate, written)
        _join_first_frames(written, rate, partial / FIRST_FRAMES)
        sync(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            remove(partial)  # another process was faster
    return paths


def _write_clips(video: Path, clips: Sequence[range], rate: int, paths: Sequence[Path]) -> None:
    """One pass over the video; a frame goes to each clip that contains it, as the last two may overlap."""
    written: dict[Path, tuple[OutputContainer, VideoStream]] = {}
    done = 0
    with av.open(video) as source:
        for done, frame in enumerate(source.decode(video=0), 1):
            pixels = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
            for clip, path in zip(clips, paths, strict=True):
                if done - 1 not in clip:
                    continue
                if done - 1 == clip.start:
                    written[path] = _begin(video, path, rate, frame.width, frame.height)
                target, stream = written[path]
                target.mux(stream.encode(pixels))
                if done == clip.stop:
                    target.mux(stream.encode())
                    target.close()
                    sync(path)
    if done < clips[-1].stop:
        raise UserError(f"{video}: is truncated ({done} of {clips[-1].stop} frames); make it again")


def _join_first_frames(clips: Iterable[Path], rate: int, path: Path) -> None:
    frames = []
    for clip in clips:
        with av.open(clip) as source:
            frames.append(next(source.decode(video=0)).to_ndarray(format="rgb24"))
    height, width, _ = frames[0].shape
    target, stream = _begin(path, path, rate, width, height)
    with target:
        for frame in frames:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        target.mux(stream.encode())
    sync(path)


def _begin(video: Path, path: Path, rate: int, width: int, height: int) -> tuple[OutputContainer, VideoStream]:
    if width % 2 or height % 2:
        raise UserError(f"{video}: is {width}x{height} pixels: h264 clips have even sizes only; scale it")
    target = av.open(path, "w", "mp4")
    return target, target.add_stream("libx264", rate=rate, pix_fmt="yuv420p", width=width, height=height)
