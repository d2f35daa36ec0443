"""Scenes to pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hiar.config import World
from hiar.world.captions import describe
from hiar.world.palette import background_table, color_table
from hiar.world.scenes import Scenes, positions, scenes
from hiar.world.shapes import masks

STRIPES = 4  # periods of a panning backdrop's stripes over the frame's width
STRIPE_LIGHT = 0.2  # how much lighter than the background colour a stripe's middle is, in [0, 1]


def clips(world: World, *, seed: int, first: int, count: int, frames: int) -> tuple[Tensor, list[str]]:
    """Clips ``first`` to ``first + count`` of the world: (uint8 (count, frames, H, W, 3), captions).

    Clip i depends on the world, the seed and i alone, and its frame f not on how many frames are asked for.
    """
    batch = scenes(world, seed=seed, first=first, count=count)
    return render(world, batch, frames), describe(world, batch)


def render(world: World, batch: Scenes, frames: int) -> Tensor:
    """The scenes' first ``frames`` frames, uint8 (N, frames, H, W, 3)."""
    size = world.size
    position = positions(batch, frames).float()
    color = 255 * color_table(world.colors)[batch.color]
    background = 255 * background_table(world.backgrounds)[batch.background]
    video = torch.empty(len(batch), frames, size, size, 3, dtype=torch.uint8)
    for i, shape in enumerate(batch.shape.tolist()):  # clip by clip: a clip's floats stay in the processor's cache
        mask = masks(world.shapes[shape], world.radius, size, position[i])[:, None]
        below = background[i].view(1, 3, 1, 1)
        if world.camera > 0:
            below = below + 255 * STRIPE_LIGHT * _stripes(batch, i, frames, size)
        above = color[i].view(1, 3, 1, 1)
        video[i] = (mask * (above - below) + below + 0.5).to(torch.uint8).permute(0, 2, 3, 1)
    return video


def _stripes(batch: Scenes, clip: int, frames: int, size: int) -> Tensor:
    """Brightness in [0, 1] of one clip's vertical stripes, (frames, 1, 1, size)."""
    x = torch.arange(size, dtype=torch.float64) + 0.5
    time = torch.arange(frames, dtype=torch.float64)[:, None]
    periods = STRIPES * (x - batch.pan[clip] * time) / size + batch.phase[clip]
    return ((1 + torch.cos(2 * math.pi * periods)) / 2).float()[:, None, None]
