"""The forward-KL regulariser that keeps motion (Eq. 10-11)."""

from __future__ import annotations

from torch import Tensor

from hiar.models.attention import Attention
from hiar.models.denoiser import Denoiser
from hiar.schedule import velocity_from_x0


def forward_kl(
    model: Denoiser, trajectory: Tensor, sigmas: Tensor, steps: int, text: Tensor, attention: Attention
) -> Tensor:
    """The student's Euler step from each of the first ``steps`` checkpoints must land on the next one.

    || v_theta(x_i, t_i) - (x_{i+1} - x_i) / (sigma_{i+1} - sigma_i) ||^2, the mean over i < K = ``steps``.
    trajectory: (B, K + 1, C, F, H, W), or more of it, at ``sigmas`` (S + 1,).
    attention: bidirectional, or block-causal for the ablation.
    """
    losses = []
    for i in range(steps):
        x, after = trajectory[:, i], trajectory[:, i + 1]
        velocity = velocity_from_x0(x, model(x, sigmas[i].expand(len(x)), text, attention), sigmas[i])
        losses.append((velocity - (after - x) / (sigmas[i + 1] - sigmas[i])).square().mean())
    return sum(losses[1:], losses[0]) / steps
