"""Causal initialisation: regression on teacher ODE trajectories under the block-causal mask (Sec. 4.1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hiar.losses.flow import velocity_error
from hiar.models.attention import BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.schedule import expand


def block_levels(samples: int, blocks: int, levels: int, random: np.random.Generator) -> Tensor:
    """Which level each block is shown at, (samples, blocks), independently of the others.

    The clean level is among them, as contexts may be clean.
    """
    return torch.from_numpy(random.integers(levels, size=(samples, blocks)))


def noisy_share(levels: Tensor, sigmas: Tensor) -> Tensor:
    """The share of blocks that are not shown clean, of ``levels`` (B, blocks); where all are, that of a single one."""
    return (sigmas[levels] > 0).float().mean().clamp(min=1 / levels.numel())


def ode_regression(
    model: Denoiser,
    trajectory: Tensor,
    sigmas: Tensor,
    levels: Tensor,
    text: Tensor,
    attention: BlockCausal,
    floor: float,
    share: Tensor | None = None,
) -> Tensor:
    """From every block at its own level, the clean end of the trajectory.

    trajectory: (B, S + 1, C, F, H, W) at ``sigmas`` (S + 1,), the last of which is 0; levels: (B, F / k).
    Clean blocks are context only: they carry no loss. share: that of noisy blocks in the batch, by which the loss is
    divided, where the samples are a part of one (`noisy_share`).
    """
    chosen = levels.repeat_interleave(attention.block, dim=1)  # (B, F)
    rows = torch.arange(len(trajectory), device=trajectory.device)[:, None]
    frames = torch.arange(chosen.shape[1], device=trajectory.device)[None, :]
    x = trajectory.transpose(2, 3)[rows, chosen, frames].transpose(1, 2)  # a frame each from its own level
    sigma = sigmas[chosen]
    x0_hat = model(x, sigma, text, attention)
    noisy = (sigma > 0)[:, None, :, None, None]
    x0 = trajectory[:, -1]
    if share is None:
        share = noisy_share(levels, sigmas)
    return velocity_error(torch.where(noisy, x0_hat, x0), x0, expand(sigma, x), floor) / share
