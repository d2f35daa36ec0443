"""The shapes: how far each reaches from its centre, and its soft-edged mask."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hiar.config import Shape

EDGE = 2.0  # pixels over which a mask falls from 1 to 0: wide enough that a sub-pixel move shows
BAR = 0.4  # a bar's shorter side over its longer one
SQUARE = 0.8  # a square's half side over the radius
RING = 0.4  # a ring's hole over its outer radius

_EXTENTS: dict[Shape, tuple[float, float]] = {
    "disc": (1.0, 1.0),
    "wide_bar": (1.0, BAR),
    "tall_bar": (BAR, 1.0),
    "square": (SQUARE, SQUARE),
    "diamond": (1.0, 1.0),
    "ring": (1.0, 1.0),
}


def extents(shape: Shape, radius: float) -> tuple[float, float]:
    """How far a shape reaches from its centre to the sides and up or down, in pixels."""
    x, y = _EXTENTS[shape]
    return x * radius, y * radius


def masks(shape: Shape, radius: float, size: int, position: Tensor) -> Tensor:
    """Opacity in [0, 1] of one shape at each position.

    ``position`` is (N, 2), x and y of the centres in pixels, where pixel i spans [i, i + 1] and y points down; the
    result is (N, size, size), rows first, in the positions' dtype.
    """
    pixels = torch.arange(size, dtype=position.dtype, device=position.device) + 0.5
    x = (pixels - position[:, :1])[:, None, :].abs()
    y = (pixels - position[:, 1:])[:, :, None].abs()
    match shape:
        case "disc":
            return _soft((x * x + y * y).sqrt_().sub_(radius))
        case "ring":
            middle, half = radius * (1 + RING) / 2, radius * (1 - RING) / 2
            return _soft((x * x + y * y).sqrt_().sub_(middle).abs_().sub_(half))
        case "diamond":
            return _soft((x + y).sub_(radius).mul_(1 / math.sqrt(2)))
        case "wide_bar" | "tall_bar" | "square":
            half_x, half_y = extents(shape, radius)
            return _soft(x - half_x) * _soft(y - half_y)


def _soft(distance: Tensor) -> Tensor:
    """Opacity at a signed distance (negative inside) from a shape's outline; changes its argument."""
    return distance.mul_(-1 / EDGE).add_(0.5).clamp_(0, 1)
