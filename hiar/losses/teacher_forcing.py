"""Teacher forcing: a causal model learns each block given clean earlier blocks (Causal-Forcing, arXiv 2602.02214)."""

from __future__ import annotations

from torch import Tensor

from hiar.losses.flow import velocity_error
from hiar.models.attention import TeacherForced
from hiar.models.denoiser import Denoiser, teacher_forced
from hiar.schedule import add_noise, expand


def forced_flow_matching(
    model: Denoiser,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    text: Tensor,
    attention: TeacherForced,
    floor: float,
    weights: Tensor | None = None,
) -> Tensor:
    """|| v_theta(x^n_sigma, sigma | x0^{<n}) - (eps^n - x0^n) ||^2, the mean over blocks n, each at its own level.

    x0, noise: latents (B, C, F, H, W); sigma: (B, F / k), positive; floor: see `velocity_error`; weights: (B, F / k) of
    the blocks' errors.
    """
    sigma = sigma.repeat_interleave(attention.block, dim=1)
    level = expand(sigma, x0)
    x = add_noise(x0, noise, level)
    x0_hat = teacher_forced(lambda x, sigma: model(x, sigma, text, attention), x0, x, sigma)
    if weights is not None:
        weights = expand(weights.repeat_interleave(attention.block, dim=1), x0)
    return velocity_error(x0_hat, x0, level, floor, weights)
