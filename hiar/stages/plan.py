"""What a rollout is going to do, before it does it: a line that tells every choice, and whether its memory suffices."""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch
from pydantic import ValidationError

from hiar.contexts import context_words
from hiar.errors import UserError
from hiar.grid import Grid, count_passes, fastest
from hiar.io.progress import tell
from hiar.models.fp8 import CAPABILITY, ERROR, MULTIPLE, in_fp8, with_fp8
from hiar.models.generator import Generator, Walk, load_generator
from hiar.models.rings import ring_bytes as one_ring
from hiar.parameters import explain
from hiar.rollout.cell import Rollout
from hiar.rollout.pipeline import PASSES
from hiar.rollout.walk import split_steps
from hiar.stages.computing import Choice, full_pass
from hiar.stages.request import Request
from hiar.stages.rollouts import DEFAULT_WALK, make_rollout

GB = 1e9


def settle_threads() -> None:
    """One CPU thread unless OMP_NUM_THREADS asks for more.

    On a block's few tokens threads gain nothing, and on a busy machine they wait for each other longer than they work.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def load_sampler(checkpoint: Path, device: torch.device, fp8: bool = False) -> Generator:
    """A checkpoint to sample with: a student that was trained in bf16 computes in it, but for what Wan keeps in full.

    A teacher's weights and latents stay as they are, see `Generator.autocast`. fp8: students' linear layers in eight
    bits. Raises UserError as `load_generator` does, and where fp8 cannot be or changes too much.
    """
    source = load_generator(checkpoint).to(device)
    student = source.card.stage != "teacher"
    if source.card.precision == "bf16" and student:
        source.denoiser.cast(torch.bfloat16)
    if fp8:
        if not student:
            raise UserError("--fp8: a teacher computes as it was trained; leave it out")
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
            found = _name(device) if device.type == "cuda" else "none"
            raise UserError(f"--fp8: needs a GPU from Hopper on, here is {found}; leave it out")
        error = round_to_fp8(source)
        tell(f"fp8: a pass differs by {error:.1%}")
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of the weights as they were
    return source


def load_asked(request: Request, device: torch.device) -> Generator:
    """`load_sampler` of a request's checkpoint, to make pictures of the size that is asked for.

    Raises UserError for a size that its world does not have.
    """
    source = load_sampler(request.checkpoint, device, request.fp8)
    if request.size is None:
        return source
    height, width = request.size
    said = f"--size = {width}x{height}"
    if "height" not in type(source.card.world).model_fields:
        raise UserError(
            f"{said}: {source.world.name} has one size, {source.world.width}x{source.world.height}; leave it out"
        )
    asked = source.card.world.model_dump() | {"height": height, "width": width}
    try:
        world = type(source.card.world).model_validate(asked)
    except ValidationError as error:
        raise UserError(f"{said}: {explain(error, type(source.card.world))}") from None
    return replace(source, card=source.card.model_copy(update={"world": world}))


def round_to_fp8(source: Generator) -> float:
    """Compute linear layers in fp8 from here on; returns by how much it changes a pass, relative.

    Raises UserError when that is too much.
    """
    rollout = make_rollout(source, source.embed([""]), DEFAULT_WALK, None, 0, [0])
    try:
        error = with_fp8(source.denoiser, partial(full_pass, source.denoiser, rollout))
    except (RuntimeError, ValueError) as refusal:
        reason = " ".join(str(refusal).split())[:200]
        raise UserError(f"--fp8: torch cannot multiply such numbers here ({reason}); leave it out") from None
    if not in_fp8(source.denoiser):
        raise UserError(f"--fp8: no linear layer has sizes that are multiples of {MULTIPLE}; leave it out")
    if not error <= ERROR:
        raise UserError(f"--fp8: a pass differs by {error:.1%}, more than {ERROR:.0%}; leave it out")
    return error


def number_format(source: Generator) -> str:
    """What the denoiser computes in."""
    dtype = str(source.denoiser.dtype).removeprefix("torch.")
    return f"{dtype} with fp8 linear layers" if in_fp8(source.denoiser) else dtype


def ring_bytes(source: Generator, grid: Grid, videos: int, caches: int | None = None) -> int:
    """Bytes of the keys and values of a walk's caches, or of some of them, their windows full."""
    config = source.denoiser.transformer.config
    dim = config.num_attention_heads * config.attention_head_dim
    one = one_ring(config.num_layers, dim, source.block_tokens, grid.window, source.denoiser.dtype.itemsize)
    return one * videos * (grid.caches if caches is None else caches)


def check_memory(source: Generator, rollout: Rollout, caches: int | None = None) -> None:
    """Raise UserError when a rollout's caches, or this many of them, do not fit in what is free of the memory."""
    videos, window = len(rollout.samples), source.card.video.window
    needed, free = ring_bytes(source, rollout.grid, videos, caches), free_bytes(rollout.text.device)
    if needed > free:
        raise UserError(
            f"video.window = {window}: the caches of {window} frames take {needed / GB:.3g} GB for {videos} video(s) "
            f"at a time, {free / GB:.3g} GB are free; give fewer prompts at a time or more memory"
        )


def check_frames(source: Generator, frames: int, count: int, batch: int, out: Path, field: str = "--frames") -> None:
    """Raise UserError when ``count`` videos of so many frames, ``batch`` at a time, do not fit in memory or ``out``.

    Their latents are whole in memory before they are written, and on the disk before the videos. ``field`` is what
    asks for the frames.
    """
    at_once = min(count, batch)
    latent = frames * 4 * math.prod(source.latent_size)
    part = source.codec.pictures(min(frames, source.codec.chunk))
    shown = part * 3 * source.world.height * source.world.width * (4 + 4 + 1)  # floats, their copy, bytes
    needed, free = at_once * latent + max(at_once * latent, shown), psutil.virtual_memory().available
    place = next(folder for folder in [out, *out.absolute().parents] if folder.is_dir())
    room = shutil.disk_usage(place).total
    memory = f"{at_once} video(s) at a time take {needed / GB:.3g} GB of memory, {free / GB:.3g} GB are free"
    disk = f"the latents take {count * latent / GB:.3g} GB, the disk has {room / GB:.3g} GB"
    for short, what in ((needed > free, memory), (count * latent > room, disk)):
        if short:
            raise UserError(f"{field} = {frames}: {what}; ask for fewer, or watch one video with `hiar stream`")


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def plan_line(source: Generator, walk: Walk, rollout: Rollout, choice: Choice, processes: int | None = None) -> str:
    """Every choice of a walk, in one line: order and passes, forward calls, processes, caches, and what computes."""
    grid, device, videos = rollout.grid, rollout.text.device, len(rollout.samples)
    order, passes = fastest(walk.order, walk.context)
    calls, each = "", ""
    if processes is not None:
        passes, each = PASSES, f" in each of {processes} process(es)"
    if grid.blocks is not None:
        shares = split_steps(grid.steps, processes or 1)
        count = max(count_passes(grid, order, passes, steps) for steps in shares)
        calls = f" ({count} forward calls{each} for {grid.blocks} blocks in {grid.steps} steps)"
    return (
        f"walk: {order}, {context_words(walk.context, walk.level)}, {passes} passes{calls}; "
        f"caches: {ring_bytes(source, grid, videos) / GB:.3g} GB for {videos} video(s) at a time; {_name(device)}, "
        f"{number_format(source)}, {choice}"
    )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
