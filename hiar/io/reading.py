"""Videos read in parts, frame by frame as a player shows them, at the size they had before they were enlarged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from torch import Tensor

from hiar.errors import UserError

Pixels = NDArray[np.uint8]

PART = 128  # frames held at a time
WATCHABLE = 192  # pixels that the shorter side of written videos should have, so also the largest possible factor
NOTE = "enlarged {} times"  # the metadata comment of videos that we write


class Head(NamedTuple):
    """What a file's header says of its video: its size in pixels before it was enlarged, length and rate."""

    width: int
    height: int
    frames: int | None  # None: not in the header
    rate: float | None  # frames per second


class _Video(NamedTuple):
    container: InputContainer
    stream: VideoStream
    scale: int
    head: Head


def read_head(path: Path) -> Head:
    """Size, length and rate of a video, without decoding it. Raises UserError as `read_parts` does."""
    with _opened(path) as video:
        return video.head


def read_parts(path: Path, frames: int = PART) -> Iterator[Tensor]:
    """The frames of a video in parts, uint8 (f, H, W, 3), f = ``frames`` except in the last part.

    Frames are those that a player shows: edit lists are applied, and frames rotated as the file asks.
    Raises UserError when it is missing, truncated or no video, changes its size, or its metadata cannot be true.
    """
    done, part = 0, []
    with _opened(path) as video:
        convert = VideoReformatter()  # one for all frames: setting it up takes longer than a small frame
        size = (video.stream.codec_context.width, video.stream.codec_context.height)
        turn = (False, False, False)
        for frame in video.container.decode(video.stream):
            if (frame.width, frame.height) != size:
                found = f"from {size[0]}x{size[1]} to {frame.width}x{frame.height} pixels"
                raise UserError(f"{path}: changes its size at frame {done} {found}; re-encode it at one size")
            if not done:
                turn = _turn(path, frame)
            part.append(_turned(_shrink(_rgb(convert, frame), video.scale), *turn))
            done += 1
            if len(part) == frames:
                yield torch.from_numpy(np.stack(part))
                part = []
        if not done or done < (video.head.frames or 0):
            raise UserError(f"{path}: is truncated ({done} of {video.head.frames or 'its'} frames); make it again")
        if part:
            yield torch.from_numpy(np.stack(part))


@contextmanager
def _opened(path: Path) -> Iterator[_Video]:
    """The open video of a file, its header checked; errors of decoding in the body become UserErrors too."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a regular file; name a video")
        # An open file, so that ffmpeg takes no name for a protocol. A stream may end with an incomplete fragment, which
        # is dropped; if the number of frames is known, missing frames are an error.
        with path.open("rb") as file, av.open(file, options={"fflags": "+discardcorrupt"}) as container:
            streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
            if not streams:
                held = " and ".join(sorted({_kind(one) for one in container.streams})) or "nothing"
                raise UserError(f"{path}: is not a video, it holds {held}; make it again")
            best = container.streams.best("video")
            stream = next((one for one in streams if one is best), streams[0])
            if not stream.codec_context:
                raise UserError(f"{path}: is not a readable video (unknown codec); make it again")
            shape = stream.sample_aspect_ratio
            if shape not in (None, 0, 1):
                raise UserError(
                    f"{path}: its pixels are {shape} times as wide as high; re-encode it with square pixels"
                )
            width, height = stream.codec_context.width, stream.codec_context.height
            scale = _factor(path, container.metadata.get("comment", ""), width, height)
            rate = stream.guessed_rate and float(stream.guessed_rate)
            head = Head(width // scale, height // scale, _length(container, stream), rate)
            yield _Video(container, stream, scale, head)
    except FileNotFoundError:
        raise UserError(f"{path}: no such video; name another") from None
    except (FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: is not a readable video ({reason}); make it again") from None


def _kind(stream: Stream) -> str:
    return "a cover picture" if stream.type == "video" else stream.type


def _factor(path: Path, note: str, width: int, height: int) -> int:
    """The factor by which a video was enlarged, from its comment; 1 without one. Raises UserError if it cannot be."""
    found = re.fullmatch(NOTE.format("(.*)"), note, re.DOTALL)
    if not found:
        return 1
    factor = int(found[1]) if re.fullmatch("[0-9]{1,4}", found[1]) else 0
    if not 1 <= factor <= WATCHABLE or width % factor or height % factor:
        said = note if len(note) < 40 else f"{note[:36]} ..."
        pixels = f"{width}x{height} pixels"
        raise UserError(f"{path}: comment = '{said}': does not fit {pixels}; delete the comment or make it again")
    return factor


def _length(container: InputContainer, stream: VideoStream) -> int | None:
    """The number of frames that a player shows, None if the file does not say: an mp4's edit list leaves some out."""
    if not stream.frames:
        return None
    if "mp4" in container.format.name.split(","):
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


def _rgb(convert: VideoReformatter, frame: VideoFrame) -> Pixels:
    """The pixels (H, W, 3) of a frame, as a view of its memory or of its converted copy's."""
    rgb = convert.reformat(frame, format="rgb24")
    plane = rgb.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8)[: rgb.height * plane.line_size].reshape(
        rgb.height, plane.line_size
    )
    return rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)


def _shrink(pixels: Pixels, scale: int) -> Pixels:
    """The mean of each square of ``scale`` x ``scale`` pixels, scale <= WATCHABLE."""
    if scale == 1:
        return pixels
    height, width, _ = pixels.shape
    rows = pixels.reshape(height // scale, scale, 3 * width)
    lines = rows[:, 0].astype(np.uint16)  # uint16 can hold a sum of 257 bytes
    for row in range(1, scale):
        lines += rows[:, row]
    # As a matrix product: numpy is slow at summing along short axes, and integers up to 2^24 are exact in float32.
    squares = lines.astype(np.float32).reshape(-1, 3 * scale) @ np.tile(np.eye(3, dtype=np.float32), (scale, 1))
    mean: Pixels = ((squares.astype(np.uint32) + scale**2 // 2) // scale**2).astype(np.uint8)
    return mean.reshape(height // scale, width // scale, 3)


def _turn(path: Path, frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How a player rotates frames: whether it transposes them, then whether it reverses rows and columns."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    (a, b), (c, d) = np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2].tolist()
    if a and d and not b and not c:
        return False, d < 0, a < 0
    if b and c and not a and not d:
        return True, b < 0, c < 0
    raise UserError(f"{path}: is rotated by {frame.rotation} degrees; rotate its frames by 0, 90, 180 or 270")


def _turned(pixels: Pixels, swapped: bool, upside_down: bool, mirrored: bool) -> Pixels:
    if swapped:
        pixels = pixels.transpose(1, 0, 2)
    return pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]
