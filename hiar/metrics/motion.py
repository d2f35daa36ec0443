"""Motion of the object that the oracle finds in each frame."""

from __future__ import annotations

import torch
from torch import Tensor

SPAN = 3  # frames a displacement is taken over: long against jitter, short against the way from wall to wall
LEAST_FRAMES = 4  # two positions after the median


def smoothed_speed(position: Tensor) -> Tensor:
    """Mean speed of the object: (V, F, 2) in pixels -> (V,) in pixels per frame.

    Positions first pass a running median of three frames, so that one misread frame moves nothing; then the speed is
    the displacement over SPAN frames divided by SPAN, averaged over the video. Jitter of single frames thus counts a
    third at most; a bounce inside the span shortens it, in the true world too.
    Raises ValueError for fewer than LEAST_FRAMES frames.
    """
    if position.shape[1] < LEAST_FRAMES:
        raise ValueError(f"speed needs at least {LEAST_FRAMES} frames, not {position.shape[1]}")
    steady = position.double().unfold(1, 3, 1).median(dim=-1).values
    span = min(SPAN, steady.shape[1] - 1)
    return (steady[:, span:] - steady[:, :-span]).norm(dim=-1).mean(dim=1) / span


def hops(position: Tensor, threshold: float) -> Tensor:
    """Jumps of the object: steps between consecutive frames longer than ``threshold`` pixels, in 100 steps.

    (V, F, 2) -> (V,) in [0, 100].
    """
    steps = position.double().diff(dim=1).norm(dim=-1)
    return 100 * (steps > threshold).double().mean(dim=1)


def dynamic(speed: Tensor, slowest: float) -> Tensor:
    """Whether a video moves: smoothed speed at least half the world's slowest. (V,) -> (V,) of 0 and 1.

    A stand-in for VBench's dynamic degree, which asks the same of optical flow.
    """
    return (speed >= slowest / 2).to(torch.float64)
