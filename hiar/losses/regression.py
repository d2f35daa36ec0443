"""Causal initialisation: regression on teacher ODE trajectories, block-causal (Sec. 4.1) or behind a clip."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hiar.losses.flow import velocity_error
from hiar.models.attention import BlockCausal, TeacherForced
from hiar.models.denoiser import Denoiser, teacher_forced
from hiar.schedule import expand


def block_levels(samples: int, blocks: int, levels: int, random: np.random.Generator) -> Tensor:
    """Which level each block is shown at, (samples, blocks), independently of the others.

    The clean level is among them, as contexts may be clean.
    """
    return torch.from_numpy(random.integers(levels, size=(samples, blocks)))


def noisy_share(sigma: Tensor) -> Tensor:
    """The share of blocks that are not shown clean, of levels (B, blocks); where all are, that of a single one."""
    return (sigma > 0).float().mean().clamp(min=1 / sigma.numel())


def ode_regression(
    model: Denoiser,
    x: Tensor,
    x0: Tensor,
    sigma: Tensor,
    text: Tensor,
    attention: BlockCausal,
    floor: float,
    share: Tensor | None = None,
) -> Tensor:
    """From every block at its own level, the clean end of the trajectory.

    x: (B, C, F, H, W), each block at its level; x0: the clean ends; sigma: (B, F / k), the noise levels of ``x``.
    Clean blocks are context only: they carry no loss. share: that of noisy blocks in the batch, by which the loss is
    divided, where the samples are a part of one (`noisy_share`).
    """
    if share is None:
        share = noisy_share(sigma)
    sigma = sigma.repeat_interleave(attention.block, dim=1)
    x0_hat = model(x, sigma, text, attention)
    noisy = (sigma > 0)[:, None, :, None, None]
    return velocity_error(torch.where(noisy, x0_hat, x0), x0, expand(sigma, x), floor) / share


def forced_regression(
    model: Denoiser,
    x: Tensor,
    x0: Tensor,
    clip: Tensor,
    sigma: Tensor,
    text: Tensor,
    attention: TeacherForced,
    floor: float,
) -> Tensor:
    """The same behind the clean blocks of ``clip``, those that a trajectory was solved behind (Causal-Forcing).

    x, x0, clip: (B, C, F, H, W); sigma: (B, F / k), the noise levels of ``x``, all positive.
    """
    sigma = sigma.repeat_interleave(attention.block, dim=1)
    x0_hat = teacher_forced(lambda x, sigma: model(x, sigma, text, attention), clip, x, sigma)
    return velocity_error(x0_hat, x0, expand(sigma, x), floor)
