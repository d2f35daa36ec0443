"""How a walk fits in the memory that is free: how many videos at a time, and in which order, told before it begins."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import psutil

from hiar.config import Order, Passes
from hiar.contexts import rule_of
from hiar.errors import UserError
from hiar.grid import Grid, fastest
from hiar.io.artifacts import partial_of
from hiar.io.files import write_text
from hiar.io.free import GB, free_bytes, free_on_disk
from hiar.memory.sampling import decode_bytes, walk_bytes
from hiar.models.card import Walk
from hiar.models.generator import Generator
from hiar.models.rings import ring_bytes as one_ring
from hiar.rollout.cell import Rollout
from hiar.stages.videos import SCRATCH

SETTLED = ".way"  # holds what an unfinished folder was begun with
USABLE = 0.9  # of what is free: the rest is for kernels' own buffers and fragments
TRIFLE = 0.01  # of it: where caches take less, what else a walk takes is not worth finding out


class Way(NamedTuple):
    """How a grid is walked, and how many videos at a time. memory: bytes of one, where that was found out."""

    order: Order
    passes: Passes
    videos: int
    memory: int | None = None

    def caches(self, grid: Grid) -> int:
        """How many caches are in memory at a time."""
        if self.order == "step_first":
            return 1
        # On diagonals the last block has read the first step's cache before a late step's begins.
        return min(grid.caches, grid.blocks or grid.caches) if self.order == "diagonal" else grid.caches

    @property
    def told(self) -> str:
        """What one video takes, for a line that tells all choices."""
        return "" if self.memory is None else f", of {self.memory / GB:.3g} GB each with what else it takes"


def settled_way(folder: Path, way: Way | None) -> Way:
    """The way that an unfinished folder of samples was begun with; begun now, it is this one."""
    path = folder / SETTLED
    if not path.exists():
        assert way is not None
        write_text(path, json.dumps(way))
    return Way(*json.loads(path.read_text(encoding="utf-8")))


def way_of(
    source: Generator, walk: Walk, rollout: Rollout, most: int = 1, *, together: bool = False, beside: int = 1
) -> Way:
    """The fastest way that fits in what is free of the memory, of at most so many videos like those of ``rollout``.

    That is the one with the fewest forward calls, of fewer videos at a time where memory is short, and where even one
    is too much, step by step, which has one step's cache in memory. The video is the same. together: it is decoded
    block by block while it is made, not afterwards. Where networks take turns, decoding has the room of the denoiser's
    weights. beside: how many processes share the host's memory in this way. Raises UserError when nothing fits.
    """
    source.turn(source.denoiser)
    grid, free = rollout.grid, int(USABLE * free_bytes(source.device))
    free //= beside if source.device.type == "cpu" else 1
    order, passes = fastest(walk.context)
    rings = ring_bytes(source, grid, most)
    if rings < TRIFLE * free:
        return Way(order, passes, most)
    ways: list[tuple[Order, Passes]] = [(order, passes)]
    if not together and grid.blocks is not None and not rule_of(walk.context).waits:
        ways.append(("step_first", "fused"))
    if ring_bytes(source, grid, 1, 1) > free:  # in no way: no more needs to be known
        raise _too_much(source, grid, ring_bytes(source, grid, 1, 1), free)
    decoding, remembered = decode_bytes(source, source.card.video.block if together else source.codec.chunk)
    weights, codec = source.weights()
    decoding -= weights - codec if source.turns else 0
    needed = 0
    for order, passes in ways:
        each = walk_bytes(source, rollout, order, passes)
        caches = ring_bytes(source, grid, 1, Way(order, passes, 1).caches(grid))
        # Together, each of the two finds what the other has left for its next block.
        walked, decoded = (each + remembered, decoding + caches) if together else (each, decoding)
        if max(walked, decoded) <= free:
            return Way(order, passes, min(most, free // each), each)
        needed = max(walked, decoded)
    raise _too_much(source, grid, needed, free)


def _too_much(source: Generator, grid: Grid, needed: int, free: int) -> UserError:
    video = source.card.video
    remedy = "give --offload, or " if source.device.type == "cuda" and source.turns is None else ""
    return UserError(
        f"video.window = {video.window}: the caches of {grid.slots * video.block} frames and what else a video "
        f"takes are {needed / GB:.3g} GB, {free / GB:.3g} GB are free to use; {remedy}ask for a smaller "
        "--size, or take a checkpoint with a shorter window, or a device with more memory"
    )


def ring_bytes(source: Generator, grid: Grid, videos: int, caches: int | None = None) -> int:
    """Bytes of the keys and values of a walk's caches, or of some of them, as full as they get."""
    config = source.denoiser.transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    one = one_ring(config.num_layers, dim, source.block_tokens, grid.slots, source.denoiser.dtype.itemsize)
    return one * videos * (grid.caches if caches is None else caches)


def check_memory(source: Generator, rollout: Rollout, caches: int | None = None) -> None:
    """Raise UserError when a rollout's caches, or this many of them, do not fit in what is free of the memory."""
    videos, video = len(rollout.samples), source.card.video
    needed, free = ring_bytes(source, rollout.grid, videos, caches), free_bytes(rollout.text.device)
    if needed > free:
        raise UserError(
            f"video.window = {video.window}: the caches of {rollout.grid.slots * video.block} frames take "
            f"{needed / GB:.3g} GB for {videos} video(s) "
            f"at a time, {free / GB:.3g} GB are free; give fewer prompts at a time or more memory"
        )


def check_frames(
    source: Generator, frames: int, count: int, batch: int, out: Path, kept: bool, field: str = "--frames"
) -> None:
    """Raise UserError when ``count`` videos of so many frames, ``batch`` at a time, do not fit in memory or ``out``.

    A batch's latents are whole in memory before they are written, and all are on the disk before the videos; where they
    are ``kept``, once more as one file. ``field`` is what asks for the frames.
    """
    at_once = min(count, batch)
    latent = frames * 4 * math.prod(source.latent_size)
    part = source.codec.pictures(min(frames, source.codec.chunk))
    shown = part * 3 * source.world.height * source.world.width * (4 + 4 + 1)  # floats, their copy, bytes
    needed, free = at_once * latent + max(at_once * latent, shown), psutil.virtual_memory().available
    # What an interrupted run has left of them is there already.
    held = [path for folder in (out, partial_of(out)) for path in (folder / SCRATCH).glob("*")]
    room = free_on_disk(out) + sum(path.stat().st_size for path in held)
    memory = f"{at_once} video(s) at a time take {needed / GB:.3g} GB of memory, {free / GB:.3g} GB are free"
    written = count * latent * (2 if kept else 1)
    disk = f"the latents take {written / GB:.3g} GB, {room / GB:.3g} GB are free on the disk"
    for short, what in ((needed > free, memory), (written > room, disk)):
        if short:
            raise UserError(f"{field} = {frames}: {what}; ask for fewer, or watch one video with `hiar stream`")
