"""The teacher's sampler: Euler steps of the probability-flow ODE under classifier-free guidance."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from hiar.models.denoiser import Denoiser, guided_x0
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
