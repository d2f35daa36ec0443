"""The teachers' samplers: Euler steps of the probability-flow ODE under classifier-free guidance."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from hiar.grid import Grid
from hiar.models.attention import Row
from hiar.models.blockwise import forward_blocks
from hiar.models.denoiser import Denoiser, guided_x0
from hiar.rollout.cell import Memory, Rollout
from hiar.schedule import euler_step


@torch.no_grad()
def ode_states(
    model: Denoiser, noise: Tensor, sigmas: Tensor, text: Tensor, no_text: Tensor, guidance: float
) -> Iterator[Tensor]:
    """Euler's method from ``noise`` (B, C, F, H, W) at sigmas[0] down to sigmas[-1] (Eq. 3).

    Yields the latent at every level.
    """
    x = noise
    yield x
    for sigma, next_sigma in pairwise(sigmas):
        x0 = guided_x0(model, x, sigma.expand(len(x)), text, no_text, guidance)
        x = euler_step(x, x0, sigma, next_sigma)
        yield x


@torch.no_grad()
def causal_ode_states(
    model: Denoiser, noise: Tensor, sigmas: Tensor, text: Tensor, no_text: Tensor, guidance: float, grid: Grid
) -> Tensor:
    """`ode_states` of a causal teacher, block by block: each is solved to its end given the clean blocks before it.

    grid: with finished context and as many blocks as ``noise`` (B, C, F, H, W). Returns (B, levels, C, F, H, W): every
    block at each of ``sigmas`` (levels,), the last of which is 0. On such a trajectory a noisy block determines its
    clean end, at whatever levels the blocks before it are shown: these determine their own clean ends.
    """
    assert grid.blocks is not None
    blocks = noise.chunk(grid.blocks, dim=2)
    both = torch.cat([text, no_text])
    channels, frames, height, width = blocks[0].shape[1:]
    shape = (channels, frames, height, width)
    memory = Memory(model, Rollout(grid, sigmas, shape, "euler", 0, range(len(both)), both))
    clean, states = len(sigmas) - 1, []
    for block, start in enumerate(blocks):
        x, passed = start, [start]
        for step in range(clean):
            x = euler_step(x, _guided(memory, block, x, step, guidance), sigmas[step], sigmas[step + 1])
            passed.append(x)
        _guided(memory, block, x, clean, guidance)  # writes its keys and values for later blocks
        states.append(torch.stack(passed, dim=1))
    return torch.cat(states, dim=3)


def _guided(memory: Memory, block: int, x: Tensor, level: int, guidance: float) -> Tensor:
    """The guided x0 prediction for a block (B, C, k, H, W) at a level (an index), in one forward with and without text.

    Each half of the batch has its own context.
    """
    rows, condition = [Row(block, 0)], [memory.conditioning(block)]
    x = torch.cat([x, x])[:, None]
    cond, uncond = forward_blocks(memory.model, x, rows, [level], condition, memory.rings, memory.places)[:, 0].chunk(2)
    return uncond + guidance * (cond - uncond)
