"""Distribution matching distillation: reverse KL between the student's videos and the teacher's (Sec. 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from hiar.models.attention import Bidirectional
from hiar.models.denoiser import Denoiser, guided_x0
from hiar.schedule import add_noise, expand


def dmd_gradient(x0: Tensor, fake_x0: Tensor, real_x0: Tensor) -> Tensor:
    """Gradient of the reverse KL at the student's ``x0``: fake score minus real score, in x0 form.

    It is normalised per sample by the mean of |x0 - real_x0|, so that all levels have equal weight.
    """
    scale = (x0 - real_x0).abs().mean(dim=tuple(range(1, x0.ndim)), keepdim=True)
    return (fake_x0 - real_x0) / scale.clamp(min=1e-6)


def dmd_loss(x0: Tensor, gradient: Tensor, weights: Tensor | None = None) -> Tensor:
    """A scalar whose gradient with respect to ``x0`` is ``gradient`` / number of elements.

    weights: (B, F), factors of the frames; None: all 1.
    """
    squared = 0.5 * (x0 - (x0 - gradient).detach()).square()
    return squared.mean() if weights is None else (squared * weights[:, None, :, None, None]).mean()


@torch.no_grad()
def score_difference(
    real: Denoiser,
    fake: Denoiser,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    text: Tensor,
    no_text: Tensor,
    guidance: float,
) -> Tensor:
    """The DMD gradient at the student's videos ``x0`` (B, C, F, H, W), noised to ``sigma`` (B,)."""
    x = add_noise(x0, noise, expand(sigma, x0))
    real_x0 = guided_x0(real, x, sigma, text, no_text, guidance)
    fake_x0 = fake(x, sigma, text, Bidirectional())
    return dmd_gradient(x0, fake_x0, real_x0)
