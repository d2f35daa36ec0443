"""How the models of a comparison are called and coloured, everywhere on the page alike."""

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
    """A model on the page. ``color`` is a class of the style sheet; an init is dashed, in its variant's colour."""

    name: str
    detail: str
    color: str
    dashed: bool = False


TRUTH = Series("True world", "rendered, not generated", "truth")


def model_series(stage: str, variant: str, walk: str | None, variants: Sequence[str]) -> Series:
    """The series of a model that walks the grid as ``walk`` says in words; None of one that walks none.

    Colours follow the place of its variant, or of the one it walks as, among ``variants``.
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
