"""Walkers in one process: they carry out the passes of any order and yield each block as it is finished."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hiar.config import Order, Passes
from hiar.grid import walk_passes
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import Memory, Rollout, carry_out


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
    exit_step: the step whose estimate of x0 is the result; the last one unless told otherwise.
    """
    grid = rollout.grid
    last = grid.steps - 1
    result = last if exit_step is None else exit_step
    memory = Memory(model, rollout)
    with torch.set_grad_enabled(grad_step is not None):
        memory.conditioning(grid.given)  # embedded where gradients may reach the embedders
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
