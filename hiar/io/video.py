"""Video files (h264 in mp4, which every browser plays) and pictures.

A small video is enlarged by an even integer factor: people can watch it without zooming, and each of its pixels keeps
its own colour, which h264 (4:2:0) otherwise shares among four. The factor is noted in the file, and reading undoes it.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from av.video.stream import VideoStream
from PIL import Image
from torch import Tensor

from hiar.io.files import atomic_file, followed, writing
from hiar.io.outputs import CRF, Output, is_stream, opened, place_of, write_all
from hiar.io.reading import NOTE, WATCHABLE, Pixels, read_parts

_BT709 = 1  # the number of colour space, primaries and transfer alike
# Options of a muxer that writes a single fragment: a continuing one would hold the last frame back until the next came.
# Timestamps stay those of the whole stream.
_FRAGMENT = {
    "movflags": "+empty_moov+default_base_moof+frag_custom+frag_discont+skip_trailer",
    "use_editlist": "0",
    "avoid_negative_ts": "disabled",
    "fflags": "+bitexact",
}
_H264 = {"profile": "baseline", "preset": "veryfast"}


def write_mp4(path: Path, frames: Tensor, fps: float, crf: int = CRF) -> None:
    """Write uint8 frames (F, H, W, 3), F >= 1, as a video; the same frames always give the same bytes.

    Raises UserError when it cannot be written.
    """
    write_parts(path, [frames], fps, crf)


def write_parts(path: Path, parts: Iterable[Tensor], fps: float, crf: int = CRF) -> None:
    """`write_mp4` for a video that comes in parts, uint8 (f, H, W, 3): the same bytes, with one part in memory."""
    parts = iter(parts)
    first = next(parts)
    height, width = first.shape[1:3]
    with (
        atomic_file(path) as temporary,
        av.open(temporary, "w", "mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container,
    ):
        stream = _add_h264(container, height, width, fps, crf=str(crf))
        for frames in itertools.chain([first], parts):
            container.mux(_encode(stream, frames))
        container.mux(stream.encode())


@contextmanager
def open_stream(
    target: Output | BinaryIO, height: int, width: int, fps: float, crf: int = CRF
) -> Iterator[Callable[[Tensor], None]]:
    """Yield ``add``, which appends uint8 frames (F, height, width, 3) to a video of unlimited length.

    The frames are in ``target`` when ``add`` returns, as one more fragment of the mp4: a reader of the file or pipe can
    play them, and a file that is cut off at any moment plays to its last complete fragment. Memory does not grow.
    A file is made, or replaced, with the first frames; nothing is written before. ``add`` raises UserError when the
    target cannot be written, or, caused by a BrokenPipeError, when its reader has gone.
    """
    place = place_of(target) if isinstance(target, Output) else Path("output")
    file: BinaryIO | None = None
    header, fragment_of = fragments(height, width, fps, crf)
    with ExitStack() as stack:

        def add(frames: Tensor) -> None:
            nonlocal file
            fragment = fragment_of(frames)
            with writing(place):
                if file is None:
                    file = stack.enter_context(_begun(target, header + fragment))
                else:
                    write_all(file, fragment)

        yield add


def fragments(
    height: int, width: int, fps: float, crf: int = CRF, *, apart: bool = False
) -> tuple[bytes, Callable[[Tensor], bytes]]:
    """The header of an mp4 of unlimited length, and a function: uint8 frames (F, height, width, 3) -> its next part.

    apart: each part begins with a key frame, so that a late viewer can begin at any of them; this takes more bytes.
    Timestamps count from the first part.
    """
    keys = {"forced-idr": "1", "g": "10000"} if apart else {}
    with av.open(header := io.BytesIO(), "w", "mp4", options=_FRAGMENT) as container:
        stream = _add_h264(container, height, width, fps, crf=str(crf), tune="zerolatency", **keys)
        container.start_encoding()
    numbers = itertools.count(1)

    def fragment_of(frames: Tensor) -> bytes:
        return _mux_fragment(stream, next(numbers), _encode(stream, frames, key=apart))

    return header.getvalue(), fragment_of


def whole_mp4(data: bytes) -> bytes:
    """A header and some of its fragments as an ordinary mp4, whose timestamps begin at 0."""
    with (
        av.open(io.BytesIO(data)) as found,
        av.open(whole := io.BytesIO(), "w", "mp4", options={"fflags": "+bitexact"}) as container,
    ):
        container.metadata["comment"] = found.metadata["comment"]
        stream = container.add_stream_from_template(found.streams.video[0])
        first: int | None = None
        for packet in found.demux(video=0):
            if packet.pts is None or packet.dts is None:
                continue  # the last one is empty
            first = packet.pts if first is None else first
            packet.pts, packet.dts = packet.pts - first, packet.dts - first
            packet.stream = stream
            container.mux(packet)
    return whole.getvalue()


def read_mp4(path: Path) -> Tensor:
    """The frames of a video, uint8 (F, H, W, 3), at the size they had before `write_mp4`.

    Raises UserError as `hiar.io.reading.read_parts` does.
    """
    return torch.cat(list(read_parts(path)))


def write_png(path: Path, image: Pixels) -> None:
    """Write a picture, uint8 (H, W, 3), atomically. Raises UserError when it cannot be written."""
    with atomic_file(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def _add_h264(container: OutputContainer, height: int, width: int, fps: float, **options: str) -> VideoStream:
    """Add an h264 stream for frames of this size, enlarged, and the factor as a comment; ``options``: x264's."""
    scale = _scale(height, width)
    container.metadata["comment"] = NOTE.format(scale)
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


def _encode(stream: VideoStream, frames: Tensor, *, key: bool = False) -> Iterator[Packet[VideoStream]]:
    """The packets that the encoder returns for uint8 frames (F, H, W, 3); key: the first becomes a key frame."""
    target = {
        "width": stream.width,
        "height": stream.height,
        "format": "yuv420p",
        "dst_colorspace": Colorspace.ITU709,
        "dst_color_range": ColorRange.MPEG,
        "interpolation": Interpolation.POINT if stream.width > frames.shape[2] else Interpolation.AREA,
    }
    for number, pixels in enumerate(frames.numpy(force=True)):
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(**target)
        if key and number == 0:
            picture.pict_type = PictureType.I
        yield from stream.encode(picture)


def _mux_fragment(stream: VideoStream, number: int, packets: Iterable[Packet[VideoStream]]) -> bytes:
    """Fragment ``number``, counted from 1, for a file that already has the header of ``stream``."""
    with av.open(whole := io.BytesIO(), "w", "mp4", options=_FRAGMENT | {"fragment_index": str(number)}) as container:
        container.add_stream_from_template(stream)
        container.start_encoding()
        header = whole.tell()
        container.mux(packets)
    return whole.getvalue()[header:]


@contextmanager
def _begun(target: Output | BinaryIO, data: bytes) -> Iterator[BinaryIO]:
    """The target, open for more, after ``data`` was written to it."""
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
    """The factor to enlarge by: 1 for large frames of even size, otherwise the smallest even one for `WATCHABLE`."""
    shorter = min(height, width)
    if shorter >= WATCHABLE and height % 2 == width % 2 == 0:
        return 1
    return 2 * math.ceil(WATCHABLE / (2 * shorter))
