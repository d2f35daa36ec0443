"""A rollout whose contexts are renewed where its prompt changes, as LongLive's interactive student does (KV recache).

Keys and values of earlier blocks were computed with the prompt they were made with, and go on telling later blocks of
it. At a change the walk therefore ends and another one begins, with the blocks that the next one sees as given ones:
they are shown anew, with the new prompt, in every cache that the method has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hiar.config import Order, Passes
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import walk


def walk_renewed(
    model: Denoiser, rollout: Rollout, order: Order, given: Tensor | None = None, *, passes: Passes = "separate"
) -> Iterator[tuple[int, Tensor]]:
    """As `walk`, but from a change of the prompt on the contexts of earlier blocks are of the new prompt, too."""
    grid, size = rollout.grid, rollout.shape[1]
    kept = {} if given is None else dict(enumerate(given.split(size, dim=2)))  # latents that are seen, by their blocks
    changes = sorted(block for block in rollout.changes if block > grid.given)
    part = replace(rollout, changes={block: rollout.changes[block] for block in rollout.changes if block <= grid.given})
    for start, end in zip([grid.given, *changes], [*changes, grid.blocks], strict=True):
        moved = 0
        if start > grid.given:
            seen = grid.visible(start)
            given, moved = torch.cat([kept[block] for block in seen], dim=2) if seen else None, start - len(seen)
            part = replace(rollout, text=rollout.changes[start], changes={}, moved=moved)
            part = replace(part, grid=replace(grid, given=len(seen)))
        blocks = None if end is None else end - moved
        for block, latent in walk(
            model, replace(part, grid=replace(part.grid, blocks=blocks)), order, given, passes=passes
        ):
            number = block + moved
            kept[number] = latent
            kept = {known: kept[known] for known in grid.visible(number + 1)}
            yield number, latent
