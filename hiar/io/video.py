"""Video files (h264 in mp4, which every browser plays) and pictures.

A video of few pixels is enlarged by a whole, even factor: people can watch it as it is, and each of its pixels keeps
its own colour, which h264 otherwise shares among four. The factor is noted in the file, and reading undoes it.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hiar.errors import UserError
from hiar.io.files import atomic_file, followed, writing
from hiar.io.outputs import Output, is_stream, opened, place_of, write_all

Pixels = NDArray[np.uint8]

WATCHABLE = 192  # pixels that the shorter side should have
_BT709 = 1  # in the numbering that colour space, primaries and transfer share
# Of a muxer that writes one fragment: one that went on would keep the last frame back until the next one came. Times
# stay as they are in the whole stream.
_FRAGMENT = {
    "movflags": "+empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",
    "fflags": "+bitexact",
}
_H264 = {"profile": "baseline", "preset": "veryfast", "crf": "16"}


def write_mp4(path: Path, frames: Tensor, fps: float) -> None:
    """Write uint8 frames (F, H, W, 3), F >= 1, as a video that always has the same bytes.

    Raises UserError when it cannot be written.
    """
    height, width = frames.shape[1:3]
    with (
        atomic_file(path) as temporary,
        av.open(temporary, "w", "mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container,
    ):
        stream = _add_h264(container, height, width, fps)
        container.mux(_encode(stream, frames))
        container.mux(stream.encode())


@contextmanager
def open_stream(target: Output | BinaryIO, height: int, width: int, fps: float) -> Iterator[Callable[[Tensor], None]]:
    """Yield ``add``, which appends uint8 frames (F, height, width, 3) to a video that may go on for ever.

    The frames are in ``target`` when ``add`` returns, as one more fragment of the mp4: whoever reads the file or pipe
    can play them, and a file that is cut at any moment plays to its last whole fragment. Nothing that is held grows.
    A file is made, or replaced, with the first frames; nothing is written before. ``add`` raises UserError when the
    target cannot be written, or, caused by a BrokenPipeError, when its reader has gone.
    """
    place = place_of(target) if isinstance(target, Output) else Path("output")
    with av.open(header := io.BytesIO(), "w", "mp4", options=_FRAGMENT) as container:
        stream = _add_h264(container, height, width, fps, tune="zerolatency")
        container.start_encoding()
    numbers = itertools.count(1)
    file: BinaryIO | None = None
    with ExitStack() as stack:

        def add(frames: Tensor) -> None:
            nonlocal file
            fragment = _mux_fragment(stream, next(numbers), _encode(stream, frames))
            with writing(place):
                if file is None:
                    file = stack.enter_context(_begun(target, header.getvalue() + fragment))
                else:
                    write_all(file, fragment)

        yield add


def read_mp4(path: Path) -> Tensor:
    """The frames of a video, uint8 (F, H, W, 3), at the size they had before ``write_mp4``.

    Raises UserError when it is missing, truncated or no video.
    """
    try:
        # A stream may end in a part of a fragment; where the number of frames is known, a missing one is told below.
        with av.open(path, options={"fflags": "+discardcorrupt"}) as container:
            note = re.fullmatch(r"enlarged (\d+) times", container.metadata.get("comment", ""))
            scale = int(note[1]) if note else 1
            stream = container.streams.video[0]
            frames = [_shrink(frame.to_ndarray(format="rgb24"), scale) for frame in container.decode(stream)]
            expected = stream.frames
    except FileNotFoundError:
        raise UserError(f"{path}: no such video; name another") from None
    except (FFmpegError, IndexError) as error:
        raise UserError(f"{path}: is no video that can be read ({error}); make it again") from None
    if not frames or len(frames) < expected:
        raise UserError(f"{path}: is truncated ({len(frames)} of {expected} frames); make it again")
    return torch.from_numpy(np.stack(frames))


def write_png(path: Path, image: Pixels) -> None:
    """Write a picture, uint8 (H, W, 3), atomically. Raises UserError when it cannot be written."""
    with atomic_file(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def _add_h264(container: OutputContainer, height: int, width: int, fps: float, **options: str) -> VideoStream:
    """A stream of pictures of this size, enlarged, and the note that lets reading undo that; ``options`` are x264's."""
    scale = _scale(height, width)
    container.metadata["comment"] = f"enlarged {scale} times"
    stream = container.add_stream(
        "libx264",
        Fraction(fps).limit_denominator(1001),
        _H264 | options,
        pix_fmt="yuv420p",
        width=scale * width,
        height=scale * height,
    )
    codec = stream.codec_context
    codec.thread_count = 1
    codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
    codec.color_range = ColorRange.MPEG
    return stream


def _encode(stream: VideoStream, frames: Tensor) -> Iterator[Packet[VideoStream]]:
    """What the encoder has ready after each of uint8 frames (F, H, W, 3)."""
    target = {
        "width": stream.width,
        "height": stream.height,
        "format": "yuv420p",
        "dst_colorspace": Colorspace.ITU709,
        "dst_color_range": ColorRange.MPEG,
        "interpolation": Interpolation.POINT if stream.width > frames.shape[2] else Interpolation.AREA,
    }
    for pixels in frames.numpy(force=True):
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        yield from stream.encode(rgb.reformat(**target))


def _mux_fragment(stream: VideoStream, number: int, packets: Iterable[Packet[VideoStream]]) -> bytes:
    """Fragment ``number``, counted from 1, of a file that holds the header of ``stream`` already."""
    with av.open(whole := io.BytesIO(), "w", "mp4", options=_FRAGMENT | {"fragment_index": str(number)}) as container:
        container.add_stream_from_template(stream)
        container.start_encoding()
        header = whole.tell()
        container.mux(packets)
    return whole.getvalue()[header:]


@contextmanager
def _begun(target: Output | BinaryIO, data: bytes) -> Iterator[BinaryIO]:
    """The open file to go on with, after ``data`` is in it."""
    file: BinaryIO
    with ExitStack() as stack:
        if isinstance(target, Path) and not is_stream(target):
            with atomic_file(followed(target)) as temporary:
                file = stack.enter_context(temporary.open("wb", buffering=0))
                write_all(file, data)
        else:
            file = stack.enter_context(opened(target)) if isinstance(target, Output) else target
            write_all(file, data)
        yield file


def _scale(height: int, width: int) -> int:
    """The factor to enlarge by: 1 for large frames of even size, else the smallest even one that is enough to watch."""
    shorter = min(height, width)
    if shorter >= WATCHABLE and height % 2 == width % 2 == 0:
        return 1
    return 2 * math.ceil(WATCHABLE / (2 * shorter))


def _shrink(pixels: Pixels, scale: int) -> Pixels:
    """The mean of each square of ``scale`` x ``scale`` pixels."""
    if scale == 1:
        return pixels
    lines = np.stack([pixels[row::scale] for row in range(scale)]).sum(axis=0, dtype=np.uint32)
    total = np.stack([lines[:, column::scale] for column in range(scale)]).sum(axis=0, dtype=np.uint32)
    mean: Pixels = ((total + scale**2 // 2) // scale**2).astype(np.uint8)
    return mean
