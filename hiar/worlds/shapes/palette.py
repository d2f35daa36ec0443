"""The RGB values of the world's named colours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiar.config import Background, Color

# Any two colours are more than .35 apart in RGB, and every colour is more than .45 from every background, so that a
# fitted colour with an error under .17 has one nearest name and no shape can hide in its backdrop.
COLORS: dict[Color, tuple[float, float, float]] = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.80, 0.20),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.90, 0.15),
    "magenta": (0.90, 0.20, 0.85),
    "cyan": (0.15, 0.85, 0.90),
    "orange": (0.95, 0.55, 0.10),
    "white": (0.95, 0.95, 0.95),
}
BACKGROUNDS: dict[Background, tuple[float, float, float]] = {
    "black": (0.05, 0.05, 0.05),
    "grey": (0.40, 0.40, 0.40),
    "navy": (0.05, 0.08, 0.30),
    "brown": (0.35, 0.20, 0.10),
    "teal": (0.05, 0.35, 0.35),
    "olive": (0.35, 0.35, 0.10),
}


def color_table(names: Sequence[Color]) -> Tensor:
    """RGB in [0, 1] of each name, (len(names), 3)."""
    return torch.tensor([COLORS[name] for name in names])


def background_table(names: Sequence[Background]) -> Tensor:
    """RGB in [0, 1] of each name, (len(names), 3)."""
    return torch.tensor([BACKGROUNDS[name] for name in names])
