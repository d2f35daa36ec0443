"""Rollouts that recompute their context where the prompt changes, as LongLive's interactive student does (KV recache).

Keys and values of earlier blocks depend on the prompt they were computed with, and would carry it to later blocks. At a
change the walk therefore ends and another one begins, with the blocks that its first block sees as given blocks: their
contexts are recomputed with the new prompt, in every cache of the method. Positions restart, too: sinks stand right
before the window, and those that do not turn with it fall behind again from there.
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
    """As `walk`, but after a prompt change the contexts of earlier blocks are computed with the new prompt, too.

    Changes may be added during the walk, for blocks that are not finished.
    """
    grid, start = rollout.grid, rollout.grid.given
    kept = {} if given is None else dict(enumerate(given.split(rollout.shape[1], dim=2)))  # latents in sight
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
        # Generated blocks: shown at the method's context level, even if a user's clip is shown clean.
        as_made = rollout.conventions.model_copy(update={"given": "level"})
        part = replace(part, grid=replace(grid, given=len(seen)), conventions=as_made)
