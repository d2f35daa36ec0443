"""Pipelines of processes that walk one grid: each has some of the steps, and blocks travel from one to the next.

Rank r of R walks its share of the steps; the last rank sends finished blocks to rank R, which decodes them. Rollouts
follow each other without a gap: a rank begins the next one while later ranks still finish the previous one.
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

PASSES: Passes = "batched"  # default of a rank: the fewest forward calls


@torch.no_grad()
def walk_rank(
    model: Denoiser,
    rollouts: Sequence[Rollout],
    links: Links,
    passes: Passes = PASSES,
    given: Sequence[Tensor | None] | None = None,
) -> None:
    """Run one rank of a pipeline: its steps of every rollout, one rollout after the other.

    given: the clean latents that each rollout continues, if any; see `rollout.walk.walk_steps`.
    Raises PeerLost if a neighbour has ended or is silent too long.
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
    """Yield, at the decoding process, the clean latents (B, C, k, H, W) of all blocks, rollout after rollout.

    Raises PeerLost if the last denoising process has ended or is silent too long.
    """
    if rollouts:
        shapes = _shapes(rollouts)
        inbox = links.inbox(shapes, rollouts[0].text)
        for _ in shapes:
            yield inbox.take()


def _shapes(rollouts: Sequence[Rollout]) -> Shapes:
    """The shapes of all messages, in order."""
    shapes: list[Sequence[int]] = []
    for rollout in rollouts:
        shapes += [(len(rollout.samples), *rollout.shape)] * (_blocks(rollout) - rollout.grid.given)
    return shapes


def _blocks(rollout: Rollout) -> int:
    if rollout.grid.blocks is None:
        raise ValueError("a pipeline's rollouts have a number of blocks")
    return rollout.grid.blocks
