"""How a walk fits in free memory: how many videos at a time, and in which order; decided before it begins."""

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
from hiar.io.free import free_bytes, free_on_disk, gigabytes
from hiar.memory.sampling import decode_bytes, walk_bytes
from hiar.models.card import Walk
from hiar.models.generator import Generator
from hiar.models.rings import ring_bytes as one_ring
from hiar.rollout.cell import Rollout
from hiar.stages.videos import SCRATCH

SETTLED = ".way"  # the file in an unfinished folder with the way it was begun with
USABLE = 0.9  # share of free memory; the rest is for kernels' own buffers and fragmentation
TRIFLE = 0.01  # share of that: where caches take less, the rest of a walk's memory is not worth counting


class Way(NamedTuple):
    """How a grid is walked, and how many videos at a time. memory: bytes per video, if they were counted."""

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
        """The memory of one video, for the line that shows all choices; empty if it was not counted."""
        return "" if self.memory is None else f", which take {gigabytes(self.memory)} each in all"


def settled_way(folder: Path, way: Way | None) -> Way:
    """The way that an unfinished folder of samples was begun with; if it is new, ``way`` is written to it."""
    path = folder / SETTLED
    if not path.exists():
        assert way is not None
        write_text(path, json.dumps(way))
    return Way(*json.loads(path.read_text(encoding="utf-8")))


def way_of(
    source: Generator, walk: Walk, rollout: Rollout, most: int = 1, *, together: bool = False, beside: int = 1
) -> Way:
    """The fastest way that fits in free memory, with at most ``most`` videos like those of ``rollout`` at a time.

    That is the order with the fewest forward calls, with fewer videos at a time if memory is short. If even one video
    does not fit, it is step by step where possible, with one step's cache in memory; videos are the same. together:
    blocks are decoded during the walk, not afterwards. If networks take turns, decoding can use the memory of the
    denoiser's weights. beside: how many processes share the host's memory. Raises UserError if nothing fits.
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
    if ring_bytes(source, grid, 1, 1) > free:  # no way fits: the rest need not be counted
        raise _too_much(source, grid, ring_bytes(source, grid, 1, 1), free)
    decoding, remembered = decode_bytes(source, source.card.video.block if together else source.codec.chunk)
    weights, codec = source.weights()
    decoding -= weights - codec if source.turns else 0
    needed = 0
    for order, passes in ways:
        each = walk_bytes(source, rollout, order, passes)
        caches = ring_bytes(source, grid, 1, Way(order, passes, 1).caches(grid))
        # Together, each of the two runs beside what the other keeps for its next block.
        walked, decoded = (each + remembered, decoding + caches) if together else (each, decoding)
        if max(walked, decoded) <= free:
            return Way(order, passes, min(most, free // each), each)
        needed = max(walked, decoded)
    raise _too_much(source, grid, needed, free)


def _too_much(source: Generator, grid: Grid, needed: int, free: int) -> UserError:
    video = source.card.video
    remedy = "give --offload, or " if source.device.type == "cuda" and source.turns is None else ""
    return UserError(
        f"video.window = {video.window}: the caches of {grid.slots * video.block} frames and the rest of a video "
        f"takes are {gigabytes(needed)}, {gigabytes(free)} are free to use; {remedy}ask for a smaller "
        "--size, or take a checkpoint with a shorter window, or a device with more memory"
    )


def ring_bytes(source: Generator, grid: Grid, videos: int, caches: int | None = None) -> int:
    """Bytes of the keys and values of a walk's caches when full; ``caches``: of so many caches, None: of all."""
    config = source.denoiser.transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    one = one_ring(config.num_layers, dim, source.block_tokens, grid.slots, source.denoiser.dtype.itemsize)
    return one * videos * (grid.caches if caches is None else caches)


def check_memory(source: Generator, rollout: Rollout, caches: int | None = None) -> None:
    """Raise UserError if a rollout's caches, or so many ``caches`` of them, do not fit in free memory."""
    videos, video = len(rollout.samples), source.card.video
    needed, free = ring_bytes(source, rollout.grid, videos, caches), free_bytes(rollout.text.device)
    if needed > free:
        raise UserError(
            f"video.window = {video.window}: the caches of {rollout.grid.slots * video.block} frames take "
            f"{gigabytes(needed)} for {videos} video(s) "
            f"at a time, {gigabytes(free)} are free; give fewer prompts at a time or more memory"
        )


def check_frames(
    source: Generator,
    frames: int,
    count: int,
    batch: int,
    out: Path,
    kept: bool,
    field: str = "--frames",
    beside: int = 1,
) -> None:
    """Raise UserError if ``count`` videos of ``frames`` frames, ``batch`` at a time, do not fit in memory or on disk.

    A batch's latents are complete in memory before they are written, and all are on the disk before the videos; if they
    are ``kept``, once more as one file. ``field``: the option or parameter that sets the frames. beside: how many
    processes share the host's memory.
    """
    at_once = min(count, batch)
    latent = frames * 4 * math.prod(source.latent_size)
    part = source.codec.pictures(min(frames, source.codec.chunk))
    shown = part * 3 * source.world.height * source.world.width * (4 + 4 + 1)  # floats, their copy, bytes
    needed, free = at_once * latent + max(at_once * latent, shown), psutil.virtual_memory().available // beside
    # Latents that an interrupted run left are on the disk already.
    held = [path for folder in (out, partial_of(out)) for path in (folder / SCRATCH).glob("*")]
    room = free_on_disk(out) + sum(path.stat().st_size for path in held)
    memory = f"{at_once} video(s) at a time take {gigabytes(needed)} of memory, {gigabytes(free)} are free"
    written = count * latent * (2 if kept else 1)
    disk = f"the latents take {gigabytes(written)}, {gigabytes(room)} are free on the disk"
    for short, what in ((needed > free, memory), (written > room, disk)):
        if short:
            raise UserError(f"{field} = {frames}: {what}; ask for fewer, or watch one video with `hiar stream`")
