"""How the models of a comparison are called and coloured, everywhere on the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hiar.config import Context, Order

COLORS = 8  # classes c0 .. c7 of the style sheet
NAMES = {
    "hiar": "HiAR",
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


def model_series(
    stage: str, variant: str, order: Order | None, context: Context | None, variants: Sequence[str]
) -> Series:
    """The series of a model; colours follow the place of its variant among ``variants``."""
    name = NAMES.get(variant, variant)
    if order is None or context is None:
        return Series(name, "bidirectional, short clips", "neutral")
    walk = f"{order.replace('_', '-')}, {context} context"
    return Series(
        f"{name} · init" if stage == "init" else name,
        walk,
        f"c{list(variants).index(variant) % COLORS}",
        dashed=stage == "init",
    )
