"""The validations of a student's training, and the correlation between two ways of sampling it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hiar.errors import UserError
from hiar.statistics.intervals import over_seeds

SCORES = Path("validation", "scores.jsonl")  # in a student's folder
BOTH_WAYS = "bidirectional/"  # metrics of videos made in one block, whose frames all see each other
LEAST = 3  # fewest validations for a correlation
NEAREST = 1 - 1e-9  # largest correlation used: at 1, Fisher's z is infinite


@dataclass(frozen=True)
class Validated:
    """Means over videos, by metric, after ``step`` updates."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of each training seed, their mean by Fisher's z, and its 95 % interval if there are several seeds."""

    seeds: Mapping[int, float]
    mean: float
    interval: tuple[float, float] | None


def read_validations(folder: Path) -> list[Validated]:
    """The validations of a student, finished or not, in their order; none if it was trained without.

    Raises UserError for a file that is not in that form.
    """
    path = folder / SCORES
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [Validated(int(one["step"]), {k: float(v) for k, v in one["metrics"].items()}) for one in lines]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a table of validations ({error}); train this student again") from None


def correlation(validations: Mapping[int, Sequence[Validated]], one: str, other: str) -> Correlation | None:
    """Correlation of two metrics over the training of each seed; None with too few validations or a constant metric.

    The interval is a t interval of the seeds' z = artanh r: validations of one training are not independent draws, so
    their number does not determine its width.
    """
    found: dict[int, float] = {}
    for seed, taken in validations.items():
        rows = [(point.metrics[one], point.metrics[other]) for point in taken if {one, other} <= point.metrics.keys()]
        courses = np.array(rows).T
        if len(rows) < LEAST or not courses.std(axis=1).all():
            return None
        found[seed] = float(np.corrcoef(courses)[0, 1])
    if not found:
        return None
    turned = [math.atanh(max(-NEAREST, min(NEAREST, r))) for r in found.values()]
    interval = over_seeds(turned)
    ends = (math.tanh(interval.low), math.tanh(interval.high)) if interval else None
    return Correlation(found, math.tanh(sum(turned) / len(turned)), ends)
