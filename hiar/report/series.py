"""Names and colours of the models of a comparison, the same everywhere on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLORS = 8  # classes c0 .. c7 of the style sheet
NAMES = {
    "hiar": "HiAR",
    "causvid": "CausVid",
    "hiar-no-fkl": "HiAR without forward-KL",
    "self-forcing": "Self-Forcing",
    "shared": "Shared passes",
    "teacher": "Teacher",
}


@dataclass(frozen=True)
class Series:
    """A model on the page. ``color`` is a class of the style sheet; inits and students walked otherwise are dashed."""

    name: str
    detail: str
    color: str
    dashed: bool = False


TRUTH = Series("True world", "rendered, not generated", "truth")


def model_series(stage: str, variant: str, walk: str | None, variants: Sequence[str]) -> Series:
    """The series of a model. ``walk`` describes how it walks the grid; None for a teacher, which does not.

    The colour follows the position of its variant, or of the one it walks as, among ``variants``.
    """
    student, _, other = variant.partition("/")
    name = NAMES.get(student, student)
    if walk is None:
        return Series(name, "bidirectional, short clips", "neutral")
    suffix = {"init": " · init", "walked": f" · walked as {NAMES.get(other, other)}"}.get(stage, "")
    return Series(
        name + suffix,
        walk,
        f"c{list(variants).index(other or student) % COLORS}",
        dashed=stage != "distill",
    )
