"""Flow matching, the loss of the teacher and of the critic; and the levels it is trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hiar.models.attention import Attention
from hiar.models.denoiser import Denoiser
from hiar.schedule import add_noise, expand, warp


def stratified_sigmas(count: int, shift: float, random: np.random.Generator) -> Tensor:
    """Training levels (count,): t stratified over (0, 1), so a small batch covers all levels, warped by the shift."""
    t = (random.permutation(count) + random.random(count)) / count
    return warp(torch.from_numpy(t).float(), shift)


def bell_weights(sigma: Tensor, shift: float) -> Tensor:
    """Loss weights of levels: exp(-2 (sigma - 1/2)^2) minus its smallest value, scaled to a mean of 1.

    The mean is over 1000 levels of ``shift``. They are largest at 1/2, and 0 at pure noise. Causal-Forcing's code has
    them, as many trainers of Wan do.
    """
    levels = warp(torch.arange(1, 1001, device=sigma.device) / 1000, shift)
    bell = torch.exp(-2 * (levels - 0.5).square())
    return (torch.exp(-2 * (sigma - 0.5).square()) - bell.min()) / (bell - bell.min()).mean()


def velocity_error(x0_hat: Tensor, x0: Tensor, sigma: Tensor, floor: float, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of the velocity, from x0 predictions: both v's share x, so it is |x0_hat - x0|^2 / sigma^2.

    ``floor`` bounds the weight of nearly clean levels; ``weights`` multiply the squares. Tensors broadcast; the result
    is a scalar.
    """
    squares = ((x0_hat - x0) / sigma.clamp(min=floor)).square()
    return (squares if weights is None else weights * squares).mean()


def flow_matching(
    model: Denoiser, x0: Tensor, noise: Tensor, sigma: Tensor, text: Tensor, attention: Attention, floor: float
) -> Tensor:
    """|| v_theta(x_sigma, sigma) - (eps - x0) ||^2 at levels ``sigma`` (B,), for latents x0 (B, C, F, H, W)."""
    level = expand(sigma, x0)
    return velocity_error(model(add_noise(x0, noise, level), sigma, text, attention), x0, level, floor)
