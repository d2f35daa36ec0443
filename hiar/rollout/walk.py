"""Walkers in one process: they carry out the passes of any order and yield each block as it is finished."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hiar.config import Order
from hiar.grid import ORDERS, Cell, passes
from hiar.models.attention import KVCache
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import BlockState, Rollout, denoise, given_state, write_context


def walk(
    model: Denoiser, rollout: Rollout, order: Order, given: Tensor | None = None, grad_step: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (block, its clean latent (B, C, k, H, W)) as blocks are finished, for ever on an endless grid.

    given: clean latents (B, C, given blocks * k, H, W) to continue.
    grad_step: the one step whose denoising is recorded for backward, as in self-rollout training; contexts never are.
    """
    grid = rollout.grid
    caches = [KVCache() for _ in range(grid.caches)]
    states: dict[int, BlockState] = {}
    last = grid.steps - 1
    for step in passes(grid, ORDERS[order](grid)):
        if (cell := step.write) is not None:
            state = _known(rollout, given, cell) if cell.block < grid.given else states[cell.block]
            write_context(model, rollout, caches[grid.cache(cell.step)], cell, state)
            if cell.step == last:
                states.pop(cell.block, None)
        if (cell := step.denoise) is not None:
            with torch.set_grad_enabled(cell.step == grad_step):
                cache = caches[grid.cache(cell.step)]
                states[cell.block] = denoise(model, rollout, cache, cell, states.get(cell.block))
            if cell.step == last:
                done = states[cell.block] if grid.is_context(cell.block) else states.pop(cell.block)
                yield cell.block, done.x0


def generate(
    model: Denoiser, rollout: Rollout, order: Order, given: Tensor | None = None, grad_step: int | None = None
) -> Tensor:
    """A whole rollout, given blocks included: (B, C, blocks * k, H, W)."""
    blocks = [latent for _, latent in walk(model, rollout, order, given, grad_step)]
    return torch.cat(blocks if given is None else [given, *blocks], dim=2)


def _known(rollout: Rollout, given: Tensor | None, cell: Cell) -> BlockState:
    if given is None:
        raise ValueError("the grid has given blocks, but no latents were given")
    k = rollout.shape[1]
    return given_state(rollout, given[:, :, cell.block * k : (cell.block + 1) * k], cell)
