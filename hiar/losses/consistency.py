"""Causal consistency distillation: one flow map from every level, learnt without trajectories.

Causal-Forcing++ (arXiv 2605.15141), on the consistency distillation of Song et al. (arXiv 2303.01469).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hiar.models.attention import TeacherForced
from hiar.models.denoiser import Denoiser, guided_x0, teacher_forced
from hiar.schedule import add_noise, euler_step, expand


def causal_consistency(
    student: Denoiser,
    average: Denoiser,
    teacher: Denoiser,
    x0: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    levels: Tensor,
    text: Tensor,
    no_text: Tensor,
    guidance: float,
    attention: TeacherForced,
) -> Tensor:
    """|| f_theta(x^n_t, t) - f_average(x^n_s, s) ||^2, all given the clean blocks x0^{<n}; the mean over blocks n.

    x_t is the noised clean video, x_s one Euler step of the guided causal teacher from x_t; t and s are neighbours
    among ``sigmas`` (N + 1,), the last of which is 0. At 0, f is x itself, which ties the map to the teacher.
    x0, noise: (B, C, F, H, W). levels: (B, F / k), the index of t for each block, 0 to N - 1. Gradients reach the
    student's side only.
    """
    levels = levels.repeat_interleave(attention.block, dim=1)
    sigma, next_sigma = sigmas[levels], sigmas[levels + 1]
    level, next_level = expand(sigma, x0), expand(next_sigma, x0)
    x = add_noise(x0, noise, level)
    with torch.no_grad():
        seen = teacher_forced(
            lambda x, sigma: guided_x0(teacher, x, sigma, text, no_text, guidance, attention), x0, x, sigma
        )
        after = euler_step(x, seen, level, next_level)
        target = teacher_forced(lambda x, sigma: average(x, sigma, text, attention), x0, after, next_sigma)
        target = torch.where(next_level > 0, target, after)
    estimate = teacher_forced(lambda x, sigma: student(x, sigma, text, attention), x0, x, sigma)
    return (estimate - target).square().mean()
