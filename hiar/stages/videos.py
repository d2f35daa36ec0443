"""A folder of samples while it is filled: the latents of a batch, then its videos, then the files of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.io.files import write_text
from hiar.io.names import video_name
from hiar.io.outputs import CRF
from hiar.io.process_group import ALONE, Ranks
from hiar.io.shards import is_whole, join_shards, read_shard, shard_path, write_shard
from hiar.io.video import write_parts
from hiar.models.generator import Generator
from hiar.models.pixels import to_frames
from hiar.transfer import arrivals, download, lead

SCRATCH = ".latents"  # where latents wait until all are there


def batches(count: int, batch: int) -> list[range]:
    """The numbers of the videos in each batch."""
    return [range(first, min(first + batch, count)) for first in range(0, count, batch)]


def missing_batches(folder: Path, count: int, batch: int, ranks: Ranks = ALONE) -> list[int]:
    """The batches whose latents are not in ``folder`` yet, of those that this process makes."""
    every = range(ranks.rank, len(batches(count, batch)), ranks.size)
    return [index for index in every if not is_whole(shard_path(folder / SCRATCH, index))]


def require_finite_latents(latents: Tensor, numbers: Sequence[int], first: int = 0) -> None:
    """Raise UserError naming the first of videos ``numbers`` whose latents (B, C, F, h, w) are not finite, and where.

    first: the number of their first frame.
    """
    for number, latent in zip(numbers, latents, strict=True):
        _require(_finite(latent), number, "latents", first)


def write_latents(folder: Path, index: int, latents: Tensor) -> None:
    """Write the latents (B, C, F, h, w) of a batch to the scratch folder, whole or not at all."""
    (folder / SCRATCH).mkdir(exist_ok=True)
    write_shard(shard_path(folder / SCRATCH, index), {"latents": latents.float()}, {})


def write_videos(
    folder: Path,
    source: Generator,
    index: int,
    numbers: range,
    count: int,
    crf: int = CRF,
    advance: Callable[[int], None] = lambda frames: None,
) -> None:
    """Write the missing videos of a batch, out of ``count`` in all, from its stored latents.

    advance: called after each part of a video with the number of its latent frames.
    """

    def parts(latent: Tensor, number: int) -> Iterator[Tensor]:
        of = latent.split(source.codec.chunk, dim=1)
        for pictures, frames in zip(decoded(source, latent, number), of, strict=True):
            yield pictures
            advance(frames.shape[1])

    latents = read_shard(shard_path(folder / SCRATCH, index))["latents"]
    for number, latent in zip(numbers, latents, strict=True):
        path = folder / video_name(number, count)
        if not path.exists():
            write_parts(path, parts(latent, number), source.world.frames_per_second, crf)
        film_path(folder, number, count).unlink(missing_ok=True)


def film_path(folder: Path, number: int, count: int) -> Path:
    """Where a video can be watched while several processes make it, until it is complete."""
    return folder / f"unfinished-{video_name(number, count)}"


def gather(folder: Path, count: int, batch: int, save_latents: bool) -> None:
    """Join the latents of all ``count`` videos in one file, if they are to be kept."""
    if save_latents:
        shards = [shard_path(folder / SCRATCH, index) for index in range(len(batches(count, batch)))]
        join_shards(shards, "latents", folder / "latents.safetensors")


def write_captions(folder: Path, captions: Sequence[str], prompts: Sequence[str]) -> None:
    """Write captions.txt, in the order of the videos' names, and prompts.jsonl: each video's name, caption and prompt.

    The two differ if prompts were extended for the generator.
    """
    write_text(folder / "captions.txt", "".join(f"{caption}\n" for caption in captions))
    lines = [
        json.dumps(
            {"video": video_name(number, len(prompts)), "caption": caption, "prompt": prompt}, ensure_ascii=False
        )
        for number, (caption, prompt) in enumerate(zip(captions, prompts, strict=True))
    ]
    write_text(folder / "prompts.jsonl", "".join(f"{line}\n" for line in lines))


def decoded(source: Generator, latent: Tensor, number: int = 0) -> Iterator[Tensor]:
    """Latents (C, F, h, w) of video ``number`` as pictures, uint8 (f, H, W, 3), part by part."""
    decode = decoding_ahead(source, number)
    yield from arrivals(map(decode, latent.split(source.codec.chunk, dim=1)), lead(source.device))


def decoding(source: Generator, number: int = 0) -> Callable[[Tensor], Tensor]:
    """A decoder of video ``number``: latents (C, f, h, w), part after part, to pictures, uint8 (F, H, W, 3).

    It raises UserError if latents or decoded pixels are not finite: in a video they would be black.
    """
    decode = decoding_ahead(source, number)
    return lambda latent: decode(latent)()


def decoding_ahead(source: Generator, number: int = 0) -> Callable[[Tensor], Callable[[], Tensor]]:
    """As `decoding`, but it returns a function that waits for a part's pictures, which a GPU makes meanwhile."""
    done, to_pixels = 0, source.codec.decoding()

    @torch.no_grad()
    def decode(latent: Tensor) -> Callable[[], Tensor]:
        nonlocal done
        first, done = done, done + latent.shape[1]
        source.turn(source.codec)
        latent = latent.to(source.device, torch.float32)
        video = to_pixels(latent[None])[0]
        whole, seen, pictures = (download(x) for x in (_finite(latent), _finite(video), to_frames(video[None])[0]))

        def arrived() -> Tensor:
            _require(whole(), number, "latents", first)
            _require(seen(), number, "pixels", source.codec.pictures(first))
            return pictures()

        return arrived

    return decode


def _finite(video: Tensor) -> Tensor:
    """Which frames of (C, F, H, W) are finite, bool (F,)."""
    return video.isfinite().all(dim=0).flatten(1).all(dim=1)


def _require(finite: Tensor, number: int, what: str, first: int) -> None:
    """Raise UserError where frames, from number ``first`` on, are not all finite."""
    if not finite.all():
        raise UserError(
            f"video {number:04d}: its {what} are not finite from frame {first + int(finite.int().argmin())} on, so it "
            "is not written; use the order and context it was trained with, or train it again"
        )
