"""Confidence intervals of mean differences.

All are Student's t intervals. In 2,000 trials with 128 pairs each, the 95 % interval covered the true difference in
94.7 % with Gaussian values, in 94.1 % with absolute slopes (skewed) and in 95.0 % with shares of good frames (most of
them exactly 1); the percentile bootstrap in 94.4, 94.0 and 94.2 %, the BCa bootstrap in 94.4, 94.2 and 92.8 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hiar.late import let_in

CONFIDENCE = 0.95

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; ``n``: the number of values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half its width: a t interval is symmetric."""
        return (self.high - self.low) / 2

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0; 0 where it contains 0."""
        return (self.low > 0) - (self.high < 0)


def over_videos(differences: Mapping[int, Values]) -> Interval | None:
    """Interval of paired differences (V,) by training seed: what other videos of the same models would show.

    The mean of the seeds' means, with the variance inside seeds; None if a seed has a single video.
    """
    groups = list(differences.values())
    freedom = sum(len(group) - 1 for group in groups)
    if min(map(len, groups)) < 2:
        return None
    variance = sum(float(group.var(ddof=1)) / len(group) for group in groups) / len(groups) ** 2
    mean = float(np.mean([group.mean() for group in groups]))
    return _t_interval(mean, math.sqrt(variance), freedom, n=freedom + len(groups))


def over_seeds(means: Sequence[float]) -> Interval | None:
    """Interval of several training seeds' mean differences: what another seed would show; None for a single one."""
    if len(means) < 2:
        return None
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means))
    return _t_interval(float(np.mean(means)), error, len(means) - 1, n=len(means))


def _t_interval(mean: float, error: float, freedom: int, n: int) -> Interval:
    let_in("scipy")
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Interval(mean, mean - half, mean + half, n)
