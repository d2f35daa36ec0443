"""Video files (h264 in mp4, which every browser plays) and pictures.

A video of few pixels is enlarged by a whole, even factor: people can watch it as it is, and each of its pixels keeps
its own colour, which h264 otherwise shares among four. The factor is noted in the file, and reading undoes it.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hiar.errors import UserError
from hiar.io.files import atomic_file

Pixels = NDArray[np.uint8]

WATCHABLE = 192  # pixels that the shorter side should have
_BT709 = 1  # in the numbering that colour space, primaries and transfer share
_H264 = {"profile": "baseline", "preset": "veryfast", "crf": "16"}


def write_mp4(path: Path, frames: Tensor, fps: float) -> None:
    """Write uint8 frames (F, H, W, 3), F >= 1, as a video that always has the same bytes.

    Raises UserError when it cannot be written.
    """
    height, width = frames.shape[1:3]
    scale = _scale(height, width)
    size = {"width": scale * width, "height": scale * height}
    target = {
        **size,
        "format": "yuv420p",
        "dst_colorspace": Colorspace.ITU709,
        "dst_color_range": ColorRange.MPEG,
        "interpolation": Interpolation.POINT if scale > 1 else Interpolation.AREA,
    }
    with (
        atomic_file(path) as temporary,
        av.open(temporary, "w", "mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container,
    ):
        container.metadata["comment"] = f"enlarged {scale} times"
        stream = container.add_stream(
            "libx264", Fraction(fps).limit_denominator(1001), _H264, pix_fmt="yuv420p", **size
        )
        codec = stream.codec_context
        codec.thread_count = 1
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = ColorRange.MPEG
        for pixels in frames.numpy(force=True):
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(rgb.reformat(**target)))
        container.mux(stream.encode())


def read_mp4(path: Path) -> Tensor:
    """The frames of a video, uint8 (F, H, W, 3), at the size they had before ``write_mp4``.

    Raises UserError when it is missing, truncated or no video.
    """
    try:
        with av.open(path) as container:
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
