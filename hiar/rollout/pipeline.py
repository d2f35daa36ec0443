"""The grid walked by several processes: each has some of the steps, and blocks travel from one to the next.

Rank r of R walks its share of the steps; the last rank hands finished blocks to the codec's place, rank R. Several
rollouts follow each other without a gap: a rank begins the next one while later ranks still finish the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hiar.config import Passes
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import Rollout
from hiar.rollout.links import Links, Shapes
from hiar.rollout.walk import split_steps, walk_steps

PASSES: Passes = "batched"  # what a rank makes of its steps unless told otherwise: the fewest forward calls


@torch.no_grad()
def walk_rank(
    model: Denoiser,
    rollouts: Sequence[Rollout],
    links: Links,
    passes: Passes = PASSES,
    given: Sequence[Tensor | None] | None = None,
) -> None:
    """What one process of a pipeline does: its steps of every rollout, one rollout after the other.

    given: the clean latents that each rollout continues, if any; see `rollout.walk.walk_steps`.
    Raises PeerLost when a neighbour is gone or silent too long.
    """
    if not rollouts:
        return
    steps = split_steps(rollouts[0].grid.steps, links.ranks)[links.rank]
    shapes, like = _shapes(rollouts), rollouts[0].text
    outbox = links.outbox(shapes, like)
    inbox = links.inbox(shapes, like) if links.rank else None
    for rollout, clip in zip(rollouts, given or [None] * len(rollouts), strict=True):
        walker = walk_steps(model, rollout, steps, lambda _: inbox.take(), clip, passes=passes)  # type: ignore[union-attr]
        for _, latent in walker:
            outbox.put(latent)
    outbox.close()


def finished_blocks(rollouts: Sequence[Rollout], links: Links) -> Iterator[Tensor]:
    """What arrives at the codec's place: the clean latents (B, C, k, H, W) of all blocks, rollout after rollout.

    Raises PeerLost when the last process that denoises is gone or silent too long.
    """
    if rollouts:
        shapes = _shapes(rollouts)
        inbox = links.inbox(shapes, rollouts[0].text)
        for _ in shapes:
            yield inbox.take()


def _shapes(rollouts: Sequence[Rollout]) -> Shapes:
    """The shapes of all messages, in their order."""
    shapes: list[Sequence[int]] = []
    for rollout in rollouts:
        shapes += [(len(rollout.samples), *rollout.shape)] * (_blocks(rollout) - rollout.grid.given)
    return shapes


def _blocks(rollout: Rollout) -> int:
    if rollout.grid.blocks is None:
        raise ValueError("a pipeline's rollouts have a number of blocks")
    return rollout.grid.blocks
