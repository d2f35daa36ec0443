"""The clip or image that a video continues: read, resized to the model's size, and cut to whole blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hiar.errors import UserError
from hiar.io.progress import tell
from hiar.io.reading import read_parts
from hiar.models.generator import Generator
from hiar.models.pixels import to_video
from hiar.stages.request import Request


def given_latents(source: Generator, request: Request) -> Tensor | None:
    """The latents (1, C, blocks * k, h, w) that a request's videos begin with, from its clip or image; None without.

    Uses the clip's last whole blocks, at most one fewer than the window has, but one at least. An image is repeated for
    one block. Raises UserError if it cannot be read, is too short, has another size, or leaves no frame to generate, if
    both are given, and for a teacher.
    """
    if request.clip is None and request.image is None:
        return None
    if request.clip is not None and request.image is not None:
        raise UserError("--video, --image: give one of the two")
    if source.card.stage == "teacher":
        raise UserError("--video, --image: the teacher generates whole clips and cannot continue one; leave them out")
    world, codec, video = source.world, source.codec, source.card.video
    size = world.height, world.width
    if request.clip is not None:
        most = max(1, video.window_blocks - 1)
        frames = read_clip(request.clip, *size, video.block, most, request.resize, codec.pictures)
    else:
        assert request.image is not None
        frames = read_image(request.image, *size, request.resize).repeat(codec.pictures(video.block), 1, 1, 1)
    with torch.no_grad():
        source.turn(codec)
        latents = codec.encode(to_video(frames[None]).to(source.device)).to(source.denoiser.dtype)
    if request.frames is not None and latents.shape[2] >= request.frames:
        what = request.clip or request.image
        raise UserError(f"--frames = {request.frames}: {what} already gives {latents.shape[2]}; ask for more")
    return latents


def read_clip(
    path: Path, height: int, width: int, block: int, most: int, resize: bool, pictures_of: Callable[[int], int]
) -> Tensor:
    """The end of a video, uint8 (F, height, width, 3), as whole blocks of ``block`` latent frames.

    Takes as many blocks as the video has, but at most ``most``, and reports how many pictures at its start are left
    out. Keeps at most ``most`` blocks in memory. ``pictures_of(n)``: how many pictures n latent frames make in a codec.
    Raises UserError if the video cannot be read, is too short, or, without ``resize``, has another size.
    """
    pictures = 0
    kept: deque[Tensor] = deque(maxlen=pictures_of(most * block))
    for part in read_parts(path, frames=16):
        kept.extend(fitted(part, height, width, resize, path))
        pictures += len(part)
    frames = pictures_of(min(most, whole_blocks(pictures, block, path, pictures_of)) * block)
    if left := pictures - frames:
        tell(f"{path}: of its {pictures} pictures the first {left} are skipped; the last {frames} make whole blocks")
    return torch.stack(list(kept)[-frames:])


def read_image(path: Path, height: int, width: int, resize: bool) -> Tensor:
    """An image as a clip of one frame, uint8 (1, height, width, 3), rotated by its EXIF tag, on a black background.

    Raises UserError if it cannot be read, or, without ``resize``, has another size.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            turned = ImageOps.exif_transpose(image).convert("RGBA")
            flat = Image.alpha_composite(Image.new("RGBA", turned.size, "black"), turned).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture; name another") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{path}: is not a readable picture ({reason}); save it as PNG or JPEG") from None
    pixels = torch.frombuffer(bytearray(flat.tobytes()), dtype=torch.uint8)
    return fitted(pixels.view(1, flat.height, flat.width, 3), height, width, resize, path)


def whole_blocks(pictures: int, block: int, what: Path, pictures_of: Callable[[int], int]) -> int:
    """How many blocks of ``block`` latent frames ``pictures`` make. Raises UserError, naming ``what``, for none."""
    first = pictures_of(block)
    if pictures < first:
        raise UserError(
            f"{what}: has {pictures} pictures: the first block of {block} latent frames takes {first}; "
            "give a longer clip"
        )
    return 1 + (pictures - first) // (pictures_of(2 * block) - first)


def fitted(frames: Tensor, height: int, width: int, resize: bool, what: Path) -> Tensor:
    """Frames uint8 (F, H, W, 3) resized to ``height`` x ``width``: scaled to cover it, then centre-cropped.

    Frames of that size are returned as they are. Raises UserError, naming ``what``, for others without ``resize``.
    """
    old_height, old_width = frames.shape[1:3]
    if (old_height, old_width) == (height, width):
        return frames
    if not resize:
        raise UserError(
            f"{what}: has {old_width}x{old_height} pixels: should have {width}x{height}; resize it, or add --resize"
        )
    factor = max(height / old_height, width / old_width)
    size = max(height, round(old_height * factor)), max(width, round(old_width * factor))
    scaled = F.interpolate(frames.movedim(-1, 1).float(), size=size, mode="bicubic", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    cut = scaled[:, :, top : top + height, left : left + width]
    return cut.round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1).contiguous()
