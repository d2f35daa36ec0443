"""What a frame shows, how far it is from anything the world can render, and how far from what its caption asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiar.config import ShapesWorld
from hiar.judges.shapes.fit import Atlas, Fit, atlases, fit
from hiar.worlds.shapes.captions import parse_caption
from hiar.worlds.shapes.palette import background_table, color_table

CHUNK = 128  # frames fitted at a time: bounds memory, and is enough for matrix products to be fast
INVISIBLE = math.sqrt(3)  # the colour error of a frame in which no shape stands out: the largest distance in RGB


@dataclass(frozen=True)
class Judgement:
    """The oracle's view of V videos of F frames. Colours and the residual are in [0, 1] units, positions in pixels."""

    residual: Tensor  # (V, F) root mean square difference to the closest picture the world can render
    visible: Tensor  # (V, F) bool: a shape stands out; where none does, the rest means nothing
    shape: Tensor  # (V, F) index into world.shapes
    shape_right: Tensor  # (V, F) bool: the captioned shape
    color: Tensor  # (V, F, 3) of the shape
    color_error: Tensor  # (V, F) distance to the captioned colour; INVISIBLE where no shape stands out
    position: Tensor  # (V, F, 2) x and y of the shape's centre
    background: Tensor  # (V, F, 3)
    background_error: Tensor  # (V, F) distance to the captioned background, or to the world's nearest when none is


def judge(world: ShapesWorld, frames: Tensor, captions: Sequence[str], tables: list[Atlas] | None = None) -> Judgement:
    """Fit every frame of videos, uint8 (V, F, H, W, 3), one caption per video; ``tables``: `atlases`, if at hand.

    Colours that the world does not have are fitted as well; the errors say how far off they are.
    Raises UserError for captions that are not this world's, ValueError for frames of another size.
    """
    videos = len(frames)
    if frames.shape[2:] != (world.size, world.size, 3) or len(captions) != videos:
        raise ValueError(f"{videos} captioned videos of {world.size} pixels a side expected, not {tuple(frames.shape)}")
    asked = [parse_caption(world, caption) for caption in captions]
    found = _fit_all(world, tables or atlases(world), frames.flatten(0, 1), videos)
    colors, backgrounds = color_table(world.colors), background_table(world.backgrounds)

    shape = torch.tensor([world.shapes.index(one.shape) for one in asked])
    color = colors[[world.colors.index(one.color) for one in asked]]
    visible = (found.color - found.background).norm(dim=-1) >= torch.cdist(colors, backgrounds).min() / 2
    color_error = (found.color - color[:, None]).norm(dim=-1)
    distance = (found.background[:, :, None] - backgrounds).norm(dim=-1)  # (V, F, backgrounds)
    background_error = distance.amin(dim=2)
    for video, one in enumerate(asked):
        if one.background is not None:
            background_error[video] = distance[video, :, world.backgrounds.index(one.background)]
    return Judgement(
        residual=found.residual,
        visible=visible,
        shape=found.shape,
        shape_right=found.shape == shape[:, None],
        color=found.color,
        color_error=color_error.where(visible, torch.tensor(INVISIBLE)),
        position=found.position,
        background=found.background,
        background_error=background_error,
    )


def _fit_all(world: ShapesWorld, tables: list[Atlas], frames: Tensor, videos: int) -> Fit:
    """The fit of frames uint8 (V F, H, W, 3), every tensor (V, F, ...)."""
    fits = [fit(world, tables, part.permute(0, 3, 1, 2).float().div_(255)) for part in frames.split(CHUNK)]
    return Fit(*(torch.cat(parts).unflatten(0, (videos, -1)) for parts in zip(*fits, strict=True)))
