"""From courses of frame metrics to a drift score in the form of HiAR's (Sec. 4.1).

The paper leaves open how slopes are normalised and weighted. In every profile of this form, a slope is divided by the
mean absolute value of its metric's segments, so that units do not matter, and the score is the weighted sum of absolute
values. Each result records its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiar.metrics.forms import ENDS, floor, forms, share
from hiar.metrics.segments import segment_means, trend

SEGMENTS = 5  # equal parts of a video, as in the paper
LEAST_FRAMES = SEGMENTS + 1  # so that there are as many pairs of consecutive frames as parts
NORMALISATION = "abs(slope of the segments' means over the video) / their mean absolute value"


@dataclass(frozen=True)
class Recipe:
    """A score's name, and the weight of each of its metrics."""

    score: str
    weights: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """The recipe, for a profile's record."""
        return {
            "score": self.score,
            "segments": SEGMENTS,
            "normalisation": NORMALISATION,
            "weights": dict(self.weights),
            "first_last": ENDS,
            "vde_weights": "linear",
            "floor": f"mean over all orders of the {SEGMENTS} segments",
        }


def drift_metrics(recipe: Recipe, series: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Metrics by name, each (V,), from courses by metric: (V, F) of frames, (V, F - 1) of pairs of consecutive ones.

    The score and its floor (its mean over all orders of the segments) under ``recipe.score``, then each metric in all
    its `hiar.metrics.forms`. Pairs are cut into segments as frames are.
    Raises KeyError for a metric that is missing, ValueError for videos that are too short.
    """
    score, lowest = [], []
    metrics: dict[str, Tensor] = {}
    for name, weight in recipe.weights.items():
        course = series[name]
        means = segment_means(course, SEGMENTS)
        score.append(weight * share(trend(course, SEGMENTS).abs(), means))
        lowest.append(weight * share(floor(means, course.shape[1]), means))
        metrics |= {f"{name}{form}": values for form, values in forms(course, SEGMENTS).items()}
    return {
        recipe.score: torch.stack(score).sum(dim=0),
        f"{recipe.score}_floor": torch.stack(lowest).sum(dim=0),
    } | metrics
