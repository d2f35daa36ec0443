"""VBench's three figures from the values of its dimensions, as the leaderboard's own script computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hiar.vbench.dimensions import DIMENSIONS, QUALITY, SEMANTIC, known_dimensions

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1
TOTALS = ("quality", "semantic", "total")


class Totals(NamedTuple):
    """None stands for a figure of which a dimension is missing."""

    quality: float | None
    semantic: float | None
    total: float | None
    missing: tuple[str, ...]


def totals(values: Mapping[str, float], strict: bool = False) -> Totals:
    """Quality, Semantic and Total of raw values by dimension.

    A figure is None while one of its dimensions is missing. strict: as in the leaderboard's script, a missing dimension
    has a raw value of 0, which is negative once normalised where the dimension's ``low`` is above 0.
    Raises UserError for a dimension that VBench does not have.
    """
    known_dimensions(values)
    missing = tuple(name for name in DIMENSIONS if name not in values)
    raw = {name: values.get(name, 0.0) for name in DIMENSIONS} if strict else values
    quality, semantic = _group(raw, QUALITY), _group(raw, SEMANTIC)
    return Totals(quality, semantic, _total(quality, semantic), missing)


def _total(quality: float | None, semantic: float | None) -> float | None:
    if quality is None or semantic is None:
        return None
    return (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)


def _group(values: Mapping[str, float], group: str) -> float | None:
    """The weighted mean of a group's normalised values."""
    members = {name: one for name, one in DIMENSIONS.items() if one.group == group}
    if not values.keys() >= members.keys():
        return None
    normalised = (one.weight * (values[name] - one.low) / (one.high - one.low) for name, one in members.items())
    return sum(normalised) / sum(one.weight for one in members.values())
