"""Before a rollout: load its checkpoint as requested, check that the weights fit, and show every choice in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError

from hiar.contexts import context_words
from hiar.errors import UserError
from hiar.grid import count_passes
from hiar.io.artifacts import content_hash
from hiar.io.cpu import multiplies_bf16
from hiar.io.free import free_bytes, gigabytes
from hiar.io.process_group import ALONE, Ranks
from hiar.io.progress import tell
from hiar.models.card import Walk, load_card
from hiar.models.fp8 import CAPABILITY, ERROR, MULTIPLE, in_fp8, with_fp8
from hiar.models.generator import Generator, load_generator
from hiar.parameters import explain
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import split_steps
from hiar.stages.computing import Choice, full_pass, settle
from hiar.stages.fitting import Way, ring_bytes, settled_way
from hiar.stages.request import Request
from hiar.stages.rollouts import DEFAULT_WALK, make_rollout
from hiar.stages.videos import batches


def load_sampler(checkpoint: Path, device: torch.device, fp8: bool = False, offload: bool = False) -> Generator:
    """Load a checkpoint to sample with; students trained in bf16 compute in it, except what Wan keeps in float32.

    A teacher's weights and latents stay in float32, see `Generator.autocast`. fp8: compute students' linear layers in
    fp8. offload: networks take turns on the device. Raises UserError as `load_generator` does, if weights do not fit,
    and if fp8 is not available or changes the output too much.
    """
    if offload and device.type != "cuda":
        raise UserError("--offload: keeps waiting networks out of a GPU's memory, but there is no GPU; leave it out")
    card, content = load_card(checkpoint), content_hash(checkpoint)
    student = card.stage != "teacher"
    half = card.precision == "bf16" and student
    if half and device.type == "cpu" and not multiplies_bf16():
        tell(
            f"{checkpoint} computes in bf16, for which this processor has no instructions; import it with `hiar "
            "import --precision no` to run several times as fast here"
        )
    source = placed(load_generator(checkpoint, torch.bfloat16 if half else torch.float32), device, offload)
    source.content = content
    if fp8:
        if not student:
            raise UserError("--fp8: a teacher computes as it was trained; leave it out")
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
            found = _name(device) if device.type == "cuda" else "none"
            raise UserError(f"--fp8: needs a Hopper GPU or newer, here: {found}; leave it out")
        error = round_to_fp8(source)
        tell(f"fp8: a pass differs by {error:.1%}")
    if device.type == "cuda":
        torch.cuda.empty_cache()  # frees the memory of the weights before their conversion
    return source


def placed(source: Generator, device: torch.device, offload: bool) -> Generator:
    """Move a generator's networks to a device, or let them take turns there. Raises UserError if weights do not fit."""
    held, free = source.weights(), free_bytes(device)
    needed = max(held) if offload else sum(held)
    if device.type == "cuda" and needed > free:
        remedy = "" if offload else "give --offload, or "
        raise UserError(
            f"the checkpoint's weights take {gigabytes(needed)}, {gigabytes(free)} of the GPU's memory are free; "
            f"{remedy}take a GPU with more memory"
        )
    return replace(source, turns=device) if offload else source.to(device)


def load_asked(request: Request, device: torch.device) -> Generator:
    """`load_sampler` of a request's checkpoint, set to the requested video size.

    Raises UserError for a size that its world does not support.
    """
    source = load_sampler(request.checkpoint, device, request.fp8, request.offload)
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
    """Switch linear layers to fp8; returns the relative change of a pass's output.

    Raises UserError if that is too much, or fp8 cannot be used.
    """
    rollout = make_rollout(source, source.embed([""]), DEFAULT_WALK, None, 0, [0])
    source.turn(source.denoiser)
    try:
        error = with_fp8(source.denoiser, partial(full_pass, source.denoiser, rollout))
    except (RuntimeError, ValueError) as refusal:
        reason = " ".join(str(refusal).split())[:200]
        raise UserError(f"--fp8: torch cannot multiply fp8 matrices here ({reason}); leave it out") from None
    if not in_fp8(source.denoiser):
        raise UserError(f"--fp8: no linear layer has sizes that are multiples of {MULTIPLE}; leave it out")
    if not error <= ERROR:
        raise UserError(f"--fp8: a pass differs by {error:.1%}, more than {ERROR:.0%}; leave it out")
    return error


def number_format(source: Generator) -> str:
    """The number format that the denoiser computes in, in words."""
    dtype = str(source.denoiser.dtype).removeprefix("torch.")
    return f"{dtype} with fp8 linear layers" if in_fp8(source.denoiser) else dtype


def settled(
    folder: Path,
    source: Generator,
    walk: Walk,
    rollout: Callable[[range], Rollout],
    count: int,
    way: Way | None,
    ranks: Ranks = ALONE,
) -> tuple[Way, Choice]:
    """How an unfinished folder of ``count`` videos is walked, and what computes it, as it was begun.

    A new folder is begun with ``way``, which the process that leads has chosen; that one shows every choice in a line.
    rollout: makes the rollout of the videos of these numbers.
    """
    with ranks.agreed():
        if ranks.leads:
            way = settled_way(folder, way)
            first, *others = batches(count, way.videos)
            choice = settle(folder, source, walk, rollout(first), 1 + len(others) // ranks.size)
            tell(plan_line(source, walk, rollout(first), choice, way))
    return settled_way(folder, way), settle(folder, source, walk, rollout(range(1)), 1)


def plan_line(
    source: Generator, walk: Walk, rollout: Rollout, choice: Choice, way: Way, processes: int | None = None
) -> str:
    """Every choice of a walk, in one line: order and passes, forward calls, processes, caches, device and kernels."""
    grid, device = rollout.grid, rollout.text.device
    order, passes, calls, each = way.order, way.passes, "", ""
    if processes is not None:
        each = f" in each of {processes} process(es)"
    if grid.blocks is not None:
        shares = split_steps(grid.steps, processes or 1)
        count = max(count_passes(grid, order, passes, steps) for steps in shares)
        calls = f" ({count} forward calls{each} for {grid.blocks} blocks in {grid.steps} steps)"
    return (
        f"walk: {order}, {context_words(walk.context, walk.level)}, {passes} passes{calls}; "
        f"caches: {gigabytes(ring_bytes(source, grid, way.videos, way.caches(grid)))} for {way.videos} video(s) at a "
        f"time{way.told}; {_name(device)}, {number_format(source)}, {choice}"
    )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
