"""Scenes to pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from hiar.config import ShapesWorld
from hiar.worlds.shapes.backdrop import stripes
from hiar.worlds.shapes.captions import describe
from hiar.worlds.shapes.palette import background_table, color_table
from hiar.worlds.shapes.scenes import Scenes, positions, scenes
from hiar.worlds.shapes.shapes import masks


def clips(world: ShapesWorld, *, seed: int, first: int, count: int, frames: int) -> tuple[Tensor, list[str]]:
    """Clips ``first`` to ``first + count`` of the world: (uint8 (count, frames, H, W, 3), captions).

    Clip i depends on the world, the seed and i alone; its frames do not depend on how many are requested.
    """
    batch = scenes(world, seed=seed, first=first, count=count)
    return render(world, batch, frames), describe(world, batch)


def render(world: ShapesWorld, batch: Scenes, frames: int) -> Tensor:
    """The scenes' first ``frames`` frames, uint8 (N, frames, H, W, 3)."""
    size = world.size
    position = positions(batch, frames).float()
    color = color_table(world.colors)[batch.color].mul_(255)[:, None, :, None, None]
    backdrop = background_table(world.backgrounds)[batch.background].mul_(255)[:, None, :, None, None]
    if world.camera > 0:
        backdrop = backdrop + stripes(world, batch.pan, batch.phase, frames).mul_(255).float()[:, :, None, None, :]
    video = torch.empty(len(batch), frames, size, size, 3, dtype=torch.uint8)
    for i, shape in enumerate(batch.shape.tolist()):  # clip by clip: one clip's floats stay in the processor's cache
        mask = masks(world.shapes[shape], world.radius, size, position[i])[:, None]
        pixels = mask * (color[i] - backdrop[i]) + backdrop[i]
        video[i] = pixels.add_(0.5).to(torch.uint8).permute(0, 2, 3, 1)
    return video
