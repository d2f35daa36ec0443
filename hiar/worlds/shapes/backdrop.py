"""The backdrop behind the shape: a plain colour, or vertical stripes that pan when the world's camera moves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hiar.config import ShapesWorld

PERIODS = 4  # of the stripes across the frame's width
LIGHT = 0.2  # how much lighter than the background colour a stripe's middle is, in [0, 1]


def stripes(world: ShapesWorld, pan: Tensor, phase: Tensor, frames: int) -> Tensor:
    """What a panning backdrop adds to its colour in each column, (N, frames, size) in [0, LIGHT].

    ``pan`` (N,) is its speed to the right in pixels per frame, ``phase`` (N,) in [0, 1) where in its period frame 0 is.
    """
    time = torch.arange(frames, dtype=torch.float64)[:, None]
    periods = PERIODS * (_columns(world) - pan[:, None, None] * time) / world.size + phase[:, None, None]
    return LIGHT * (1 + torch.cos(2 * math.pi * periods)) / 2


def basis(world: ShapesWorld) -> Tensor:
    """Patterns (K, size) over the columns; with weights for each colour channel, they sum to any possible backdrop.

    The first is constant 1; its weight is the mean colour, which is ``mean_light`` lighter than the background's.
    """
    angle = 2 * math.pi * PERIODS * _columns(world) / world.size
    constant = torch.ones_like(angle)
    return torch.stack([constant, angle.cos(), angle.sin()] if world.camera > 0 else [constant])


def mean_light(world: ShapesWorld) -> float:
    """How much lighter than the background colour the backdrop is on average."""
    return LIGHT / 2 if world.camera > 0 else 0.0


def _columns(world: ShapesWorld) -> Tensor:
    return torch.arange(world.size, dtype=torch.float64) + 0.5
