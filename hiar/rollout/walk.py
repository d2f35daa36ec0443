"""Walkers: they carry out the passes of any order and yield each block as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from hiar.config import Order, Passes
from hiar.grid import walk_passes
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import BlockState, Memory, Rollout, carry_out


def walk(
    model: Denoiser,
    rollout: Rollout,
    order: Order,
    given: Tensor | None = None,
    *,
    passes: Passes = "separate",
    grad_step: int | None = None,
    exit_step: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (block, its clean latent (B, C, k, H, W)) as blocks are finished, for ever on an endless grid.

    given: clean latents (B, C, given blocks * k, H, W) to continue. passes: how cells share forward calls.
    grad_step: the one step whose denoising is recorded for backward, as in self-rollout training; contexts never are.
    exit_step: the step whose x0 prediction is the result; by default the last one.
    """
    grid = rollout.grid
    last = grid.steps - 1
    result = last if exit_step is None else exit_step
    memory = Memory(model, rollout, recorded=grad_step is not None)
    with torch.set_grad_enabled(grad_step is not None):
        memory.conditioning(grid.given)  # embedded here, where gradients may reach the embedders
    for step in walk_passes(grid, order, passes):
        carry_out(memory, step, given, grad_step)
        for cell in step.write:
            if cell.step == last:
                memory.states.pop(cell.block, None)
        for cell in step.denoise:
            if cell.step == result:
                yield cell.block, memory.states[cell.block].x0
            if cell.step == last and not grid.is_context(cell.block):
                del memory.states[cell.block]
            if grid.ends(cell):
                memory.rings.drop(grid.cache(cell.step))


def walk_steps(
    model: Denoiser,
    rollout: Rollout,
    steps: range,
    arrive: Callable[[int], Tensor],
    given: Tensor | None = None,
    *,
    passes: Passes = "separate",
) -> Iterator[tuple[int, Tensor]]:
    """Walk only ``steps`` of a grid along its diagonals, as one rank of a pipeline whose other ranks walk the rest.

    arrive(block): the latent (B, C, k, H, W) of a block after the step before ``steps``, waiting if necessary; called
    in block order, and never if ``steps`` begin with the first. Yields (block, its latent after the last of ``steps``)
    before the block's context is written, so that the transfer overlaps with that pass.
    """
    memory = Memory(model, rollout)
    for step in walk_passes(rollout.grid, "diagonal", passes, steps):
        for block, j in step.denoise:
            if j == steps.start > 0:
                x = arrive(block)
                memory.states[block] = BlockState(x, x, x)
        carry_out(memory, step, given)
        for block, j in step.write:
            if j == steps.stop - 1:
                memory.states.pop(block, None)
        for block, j in step.denoise:
            if j == steps.stop - 1:
                yield block, memory.states[block].after
                if not rollout.grid.is_context(block):
                    del memory.states[block]


def split_steps(steps: int, ranks: int) -> list[range]:
    """The contiguous steps of each of the ``ranks`` of a pipeline, as even as possible, longer shares last.

    The first rank also starts every prompt, so its share is never the longer one.
    """
    borders = [rank * steps // ranks for rank in range(ranks + 1)]
    return [range(start, stop) for start, stop in pairwise(borders)]


def generate(
    model: Denoiser,
    rollout: Rollout,
    order: Order,
    given: Tensor | None = None,
    *,
    passes: Passes = "separate",
    grad_step: int | None = None,
    exit_step: int | None = None,
) -> Tensor:
    """A whole rollout, given blocks included: (B, C, blocks * k, H, W)."""
    walker = walk(model, rollout, order, given, passes=passes, grad_step=grad_step, exit_step=exit_step)
    blocks = [latent for _, latent in walker]
    return torch.cat(blocks if given is None else [given, *blocks], dim=2)
