"""The one place where a cell of the grid is denoised and its context is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiar.config import Renoise
from hiar.grid import Cell, Grid
from hiar.models.attention import Cached, KVCache
from hiar.models.denoiser import Denoiser
from hiar.noise import block_noise
from hiar.schedule import add_noise, euler_step


@dataclass(frozen=True)
class Rollout:
    """What a walk generates: the grid, its noise levels, and which samples.

    sigmas: (steps + 1,) or more, see `schedule.step_sigmas`; a grid of fewer steps than levels exits early, with the
    estimate of x0 as its result. shape: (C, k, H, W) of one block. samples: numbers that give each video its noise.
    text: (B, words, dim).
    """

    grid: Grid
    sigmas: Tensor
    shape: tuple[int, int, int, int]
    renoise: Renoise
    seed: int
    samples: Sequence[int]
    text: Tensor

    def noise(self, cell: Cell) -> Tensor:
        """The noise of a cell, (B, C, k, H, W)."""
        return block_noise(self.seed, self.samples, cell.step, cell.block, self.shape).to(self.text)


@dataclass
class BlockState:
    """A block under way: the latent the last step began with, the x0 it saw, and the latent it ended with."""

    before: Tensor
    x0: Tensor
    after: Tensor


def denoise(model: Denoiser, rollout: Rollout, cache: KVCache, cell: Cell, state: BlockState | None) -> BlockState:
    """Take a block from level t_j to t_{j+1} (Eq. 1-3), its context being in ``cache``."""
    sigma, next_sigma = rollout.sigmas[cell.step], rollout.sigmas[cell.step + 1]
    x = rollout.noise(cell) if state is None else state.after
    x0 = model(x, sigma.expand(len(x)), rollout.text, Cached(cache))
    if next_sigma == 0:
        after = x0
    elif rollout.renoise == "sde":
        after = add_noise(x0, rollout.noise(Cell(cell.block, cell.step + 1)), next_sigma)
    else:
        after = euler_step(x, x0, sigma, next_sigma)
    return BlockState(x, x0, after)


def given_state(rollout: Rollout, x0: Tensor, cell: Cell) -> BlockState:
    """The state that a block known to be ``x0`` would have around ``cell``."""
    levels = []
    for step in (cell.step, cell.step + 1):
        noise = rollout.noise(Cell(cell.block, step if rollout.renoise == "sde" else 0))
        levels.append(add_noise(x0, noise, rollout.sigmas[step]))
    return BlockState(levels[0], x0, levels[1])


@torch.no_grad()
def write_context(model: Denoiser, rollout: Rollout, cache: KVCache, cell: Cell, state: BlockState) -> None:
    """Show a block to the later ones at the level of the grid's context rule (Sec. 3.1).

    The cache's window then slides: blocks that the next one does not see are forgotten.
    """
    match rollout.grid.context:
        case "clean":  # t_c = 0
            latent, sigma = state.x0, torch.zeros(())
        case "output":  # t_c = t_{j+1}
            latent, sigma = state.after, rollout.sigmas[cell.step + 1]
        case "input":  # t_c = t_j
            latent, sigma = state.before, rollout.sigmas[cell.step]
    model(latent.detach(), sigma.expand(len(latent)), rollout.text, Cached(cache, write=cell.block))
    cache.keep(rollout.grid.visible(cell.block + 1))
