"""Noise levels of flow matching and the steps between them (Eq. 1-3).

A noisy latent is ``x = (1 - sigma) x0 + sigma eps``; the network's velocity is ``v = eps - x0``. Everything here is a
function of sigma itself: nothing is looked up in a table of training timesteps. Tensors of sigmas broadcast against
their latents, see `expand`. Steps are computed in at least float32, and rounded once to the latents' type.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from hiar.config import Schedule

TIMESTEP_SCALE = 1000.0  # Wan's timestep embedding was trained on sigma * 1000


def warp(t: Tensor, shift: float) -> Tensor:
    """sigma_t = s t / (1 + (s - 1) t) (Eq. 1); t = 0 is clean, t = 1 pure noise."""
    return shift * t / (shift * t + (1 - t))  # in this form t = 1 gives exactly 1


def step_sigmas(steps: int, shift: float) -> Tensor:
    """Levels of S = ``steps`` steps, (S + 1,) float32: t = 1, 1 - 1/S, ..., 1/S, 0 warped by the shift."""
    return warp(torch.linspace(1, 0, steps + 1), shift)


def student_sigmas(schedule: Schedule) -> Tensor:
    """The levels of a student's steps, (S + 1,) float32, the last one 0."""
    if schedule.student_levels is not None:
        return torch.tensor([*schedule.student_levels, 0.0])
    assert schedule.student_shift is not None  # the config requires one of the two
    return step_sigmas(schedule.student_steps, schedule.student_shift)


def solver_sigmas(sigmas: Tensor, substeps: int, shift: float) -> Tensor:
    """Levels of an ODE solver that visits every one of ``sigmas`` exactly, with ``substeps`` steps between neighbours.

    Steps are even in the t that ``shift``, the teacher's, warps.
    sigmas: (S + 1,) -> (S * substeps + 1,); entry ``j * substeps`` is ``sigmas[j]``.
    """
    t = sigmas / (shift - (shift - 1) * sigmas)  # the inverse of `warp`
    parts = []
    for j, (start, end) in enumerate(pairwise(t)):
        between = torch.lerp(start, end, torch.linspace(0, 1, substeps + 1)[1:-1])
        parts += [sigmas[j : j + 1], warp(between, shift)]
    return torch.cat([*parts, sigmas[-1:]])


def expand(sigma: Tensor, frames: Tensor) -> Tensor:
    """Reshape sigmas (B,) or (B, F) to broadcast against latents (B, C, F, H, W)."""
    if sigma.ndim == 1:
        sigma = sigma[:, None]
    return full(sigma[:, None, :, None, None].to(frames.device))


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) x0 + sigma eps (Eq. 1)."""
    return ((1 - sigma) * full(x0) + sigma * full(noise)).to(x0.dtype)


def x0_from_velocity(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x0 = x - sigma v (Eq. 2)."""
    return (full(x) - sigma * full(velocity)).to(x.dtype)


def velocity_from_x0(x: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """The inverse of Eq. 2, v = (x - x0) / sigma; sigma must be positive."""
    return ((full(x) - full(x0)) / sigma).to(x.dtype)


def euler_step(x: Tensor, x0: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """One deterministic step to ``next_sigma`` (Eq. 3), from the x0 that the network predicts at ``sigma``."""
    velocity = velocity_from_x0(full(x), full(x0), sigma)
    return (full(x) + velocity * (next_sigma - sigma)).to(x.dtype)


def with_less_noise(x: Tensor, x0: Tensor, share: float | Tensor) -> Tensor:
    """``x``, which is ``x0`` at a level sigma, moved to ``share`` times sigma with the same noise; 1 returns x."""
    weight = share.to(full(x)) if isinstance(share, Tensor) else share
    return torch.lerp(full(x0), full(x), weight).to(x.dtype)


def full(x: Tensor) -> Tensor:
    """``x`` in at least float32, so that results computed from it are rounded once."""
    return x.float() if x.dtype.itemsize < 4 else x
