"""A rollout whose contexts are renewed where its prompt changes, as LongLive's interactive student does (KV recache).

Keys and values of earlier blocks were computed with the prompt they were made with, and go on telling later blocks of
it. At a change the walk therefore ends and another one begins, with the blocks that the next one sees as given ones:
they are shown anew, with the new prompt, in every cache that the method has. Positions begin anew, too: sinks stand
right before the window, from where those that do not turn with it fall behind again.
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
    """As `walk`, but from a change of the prompt on the contexts of earlier blocks are of the new prompt, too.

    Changes may come while it is walked, for blocks that are not finished.
    """
    grid, start = rollout.grid, rollout.grid.given
    kept = {} if given is None else dict(enumerate(given.split(rollout.shape[1], dim=2)))  # latents that may be seen
    part = replace(rollout, changes={block: text for block, text in rollout.changes.items() if block <= start})
    while grid.blocks is None or start < grid.blocks:
        end = min((block for block in rollout.changes if block > start), default=grid.blocks)
        blocks = None if end is None else end - part.moved
        whole = replace(part, grid=replace(part.grid, blocks=blocks))
        for block, latent in walk(model, whole, order, given, passes=passes):
            start = block + part.moved + 1
            kept = {known: kept.get(known, latent) for known in grid.visible(start)}
            yield start - 1, latent
            if start in rollout.changes:
                break
        else:
            return
        seen = grid.visible(start)
        given = torch.cat([kept[known] for known in seen], dim=2) if seen else None
        part = replace(rollout, text=rollout.changes[start], changes={}, moved=start - len(seen))
        # Generated blocks, which are shown as the method shows them, whatever is done with somebody's clip.
        as_made = rollout.conventions.model_copy(update={"given": "level"})
        part = replace(part, grid=replace(grid, given=len(seen)), conventions=as_made)
