"""Drift in its published forms, for any measure of frames, whether a formula or a network computes it."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from hiar.metrics.segments import segment_centres, segment_means, slope, trend

ENDS = 0.15  # of the video, at each end: what Helios compares


def forms(series: Tensor, segments: int) -> dict[str, Tensor]:
    """All figures of a measure over time (V, F), by the suffix of their names, each (V,).

    - no suffix: the mean over frames; ``_segment_1`` ...: the mean over each segment;
    - ``_trend``: slope of a linear fit over the segments, change per video; ``_drift``: its absolute value (HiAR, Sec.
      4.1); ``_floor``: the mean of ``_drift`` over all orders of the segments, which is what noise alone gives;
    - ``_first_last``: distance of the first 15 % of the frames from the last (Helios);
    - ``_vde``: weighted distances of the later segments from the first, relative to it (LV-Bench's VDE), see `vde`.

    Raises ValueError for fewer frames than ``segments``.
    """
    means = segment_means(series, segments)
    found = {
        "": series.double().mean(dim=1),
        "_trend": trend(series, segments),
        "_drift": trend(series, segments).abs(),
        "_floor": floor(means, series.shape[1]),
        "_first_last": first_last(series),
        "_vde": vde(means),
    }
    return found | {f"_segment_{part}": values for part, values in enumerate(means.unbind(dim=1), start=1)}


def floor(means: Tensor, frames: int) -> Tensor:
    """Mean absolute slope over every order of the segments (V, segments) of videos of ``frames`` frames: (V,).

    All orders are taken, none are sampled: five segments have 120.
    """
    segments = means.shape[1]
    orders = torch.tensor(list(permutations(range(segments))))  # (orders, segments)
    return slope(means[:, orders], segment_centres(frames, segments)).abs().mean(dim=1)


def first_last(series: Tensor) -> Tensor:
    """Distance between the means of the first and of the last 15 % of the frames, at least one: (V, F) -> (V,)."""
    count = max(1, round(ENDS * series.shape[1]))
    return (series[:, :count].double().mean(dim=1) - series[:, -count:].double().mean(dim=1)).abs()


def vde(means: Tensor) -> Tensor:
    """Sum over the later segments i of N, counted from 1, of (N - i + 1) abs(m_i - m_1) / m_1: (V, N) -> (V,).

    NaN where m_1 is 0 and another is not.
    """
    first, later = means[:, :1], means[:, 1:]
    weights = torch.arange(later.shape[1], 0, -1, dtype=means.dtype)
    away = (later - first).abs() @ weights
    return torch.where(away == 0, away, away / first[:, 0].where(first[:, 0] != 0, torch.nan))


def share(change: Tensor, means: Tensor) -> Tensor:
    """A change (V,) relative to the mean absolute value of its measure's segments (V, segments); 0 where that is 0."""
    size = means.abs().mean(dim=1)
    return change / size.where(size != 0, torch.ones_like(size))
