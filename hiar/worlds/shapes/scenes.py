"""What happens in a clip: drawn from (seed, clip index) alone, with positions in closed form over time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hiar.config import ShapesWorld
from hiar.noise import stream
from hiar.worlds.shapes.shapes import extents

_DRAWS = 12  # uniform numbers per clip; more may be appended without changing the meaning of these


@dataclass(frozen=True)
class Scenes:
    """A batch of N scenes; every tensor's first dimension is N. Lengths are pixels, times frames, y points down."""

    shape: Tensor  # index into world.shapes
    color: Tensor  # index into world.colors
    background: Tensor  # index into world.backgrounds
    low: Tensor  # (N, 2) float64: smallest x and y of the centre that keep the shape in the frame
    high: Tensor  # (N, 2) float64: largest
    start: Tensor  # (N, 2) float64: centre in frame 0
    velocity: Tensor  # (N, 2) float64: before the first bounce
    pan: Tensor  # (N,) float64: the backdrop's speed to the right
    phase: Tensor  # (N,) float64 in [0, 1): where in its period the backdrop's pattern is in frame 0
    told: Tensor  # (N, 3) bool: whether the caption names speed, direction, background

    def __len__(self) -> int:
        return len(self.shape)


def scenes(world: ShapesWorld, *, seed: int, first: int, count: int) -> Scenes:
    """Scenes ``first`` to ``first + count``; scene i depends on the world, the seed and i, not on its batch."""
    drawn = torch.from_numpy(np.stack([stream("scene", seed, sample=first + i).random(_DRAWS) for i in range(count)]))
    shape = _pick(drawn[:, 0], len(world.shapes))
    reach = torch.tensor([extents(s, world.radius) for s in world.shapes], dtype=torch.float64)[shape]
    low, high = reach, world.size - reach
    slow, fast = world.speed
    speed = slow + (fast - slow) * drawn[:, 5]
    angle = 2 * math.pi * drawn[:, 6]
    return Scenes(
        shape=shape,
        color=_pick(drawn[:, 1], len(world.colors)),
        background=_pick(drawn[:, 2], len(world.backgrounds)),
        low=low,
        high=high,
        start=low + (high - low) * drawn[:, 3:5],
        velocity=speed[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1),
        pan=world.camera * (2 * drawn[:, 7] - 1),
        phase=drawn[:, 8],
        told=drawn[:, 9:12] >= world.caption_dropout,
    )


def positions(batch: Scenes, frames: int) -> Tensor:
    """Centres of the shapes, (N, frames, 2) in float64: straight lines folded back at the frame's edges."""
    time = torch.arange(frames, dtype=torch.float64)[None, :, None]
    room = (batch.high - batch.low)[:, None]
    travelled = (batch.start - batch.low)[:, None] + batch.velocity[:, None] * time
    folded = travelled.remainder(2 * room)
    return batch.low[:, None] + torch.minimum(folded, 2 * room - folded)


def _pick(uniform: Tensor, choices: int) -> Tensor:
    return (uniform * choices).long()
