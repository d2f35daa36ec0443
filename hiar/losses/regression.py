"""Causal initialisation: regression on teacher ODE trajectories, block-causal (Sec. 4.1) or teacher-forced."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hiar.losses.flow import velocity_error
from hiar.models.attention import BlockCausal, TeacherForced
from hiar.models.denoiser import Denoiser, teacher_forced
from hiar.schedule import expand


def block_levels(samples: int, blocks: int, levels: int, random: np.random.Generator) -> Tensor:
    """A random level index for each block, (samples, blocks), independent of the others.

    The clean level is among them, as contexts may be clean.
    """
    return torch.from_numpy(random.integers(levels, size=(samples, blocks)))


def noisy_share(sigma: Tensor) -> Tensor:
    """The fraction of noisy blocks among levels (B, blocks); if all are clean, that of a single block."""
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
    """Error of the predicted clean ends of trajectories, from blocks that each have their own level.

    x: (B, C, F, H, W), each block at its level; x0: the clean ends; sigma: (B, F / k), the noise levels of ``x``. Clean
    blocks are context only: they carry no loss. share: the fraction of noisy blocks in the whole batch (`noisy_share`),
    by which the loss is divided; to be given where the samples are a part of a batch.
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
    """As `ode_regression`, given the clean blocks of ``clip``, with which the trajectory was solved (Causal-Forcing).

    x, x0, clip: (B, C, F, H, W); sigma: (B, F / k), the noise levels of ``x``, all positive.
    """
    sigma = sigma.repeat_interleave(attention.block, dim=1)
    x0_hat = teacher_forced(lambda x, sigma: model(x, sigma, text, attention), clip, x, sigma)
    return velocity_error(x0_hat, x0, expand(sigma, x), floor)
