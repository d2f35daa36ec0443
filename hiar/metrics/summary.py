"""From one value per video to mean, standard error and count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from torch import Tensor


class Summary(TypedDict):
    """Mean over ``n`` videos and its standard error, which a single video does not have."""

    mean: float
    se: float | None
    n: int


class Figures(NamedTuple):
    """The metrics of a folder of videos.

    values: of each video by metric, in the order of the videos' names, without metrics that are undefined for it.
    facts: what made them, such as weights and versions.
    """

    metrics: dict[str, Summary]
    values: list[dict[str, float]]
    facts: dict[str, object]


def summarise(values: Tensor) -> Summary:
    """Mean of (V,) values and its standard error over videos, std / sqrt(V), to six significant digits."""
    n = values.numel()
    values = values.double()
    se = float(values.std() / math.sqrt(n)) if n > 1 else None
    return {"mean": _digits(float(values.mean())), "se": None if se is None else _digits(se), "n": n}


def pool(summaries: Sequence[Summary]) -> Summary:
    """One summary of several seeds' summaries.

    The mean is that of the seeds' means; its standard error, sqrt(sum se^2) / seeds, is that over videos: it says
    nothing about how far another training seed would land.
    """
    count = len(summaries)
    errors = [summary["se"] for summary in summaries if summary["se"] is not None]
    se = math.sqrt(sum(error**2 for error in errors)) / count if len(errors) == count else None
    mean = sum(summary["mean"] for summary in summaries) / count
    return {"mean": mean, "se": se, "n": sum(summary["n"] for summary in summaries)}


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
