"""The grid walked by several processes: each has some of the steps, and blocks travel from one to the next.

Rank r of R walks its share of the steps; the last rank hands finished blocks to the codec's place, rank R. Several
rollouts follow each other without a gap: a rank begins the next one while later ranks still finish the one before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from hiar.config import Passes
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import split_steps, walk_steps

PASSES: Passes = "batched"  # what a rank makes of its steps unless told otherwise: the fewest forward calls
AHEAD = 2  # messages asked for before they are needed, so that they travel beside the work


class PeerLost(Exception):
    """Another process of the group is gone, or silent for longer than the group waits."""


@contextmanager
def talking() -> Iterator[None]:
    """Around what needs other processes, and nothing else: its failures become PeerLost."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        raise PeerLost(" ".join(str(error).split())[:200]) from error


class Inbox:
    """Blocks from the rank before, in the order they were sent, received ahead of their use."""

    def __init__(self, source: int, shapes: Iterable[Sequence[int]], like: Tensor) -> None:
        self.source, self.shapes, self.like = source, iter(shapes), like
        self.coming: deque[tuple[Tensor, dist.Work]] = deque()
        for _ in range(AHEAD):
            self._ask()

    def take(self) -> Tensor:
        """The next block, waited for if need be. Raises PeerLost when the other rank is gone or silent too long."""
        latent, work = self.coming.popleft()
        with talking():
            work.wait()
        self._ask()
        return latent

    def _ask(self) -> None:
        if (shape := next(self.shapes, None)) is not None:
            latent = self.like.new_empty(tuple(shape))
            with talking():
                work = dist.irecv(latent, self.source)
            assert work is not None
            self.coming.append((latent, work))


class Outbox:
    """Blocks to the rank after; sending goes on while this rank works."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.going: deque[tuple[Tensor, dist.Work]] = deque()

    def put(self, latent: Tensor) -> None:
        """Send a block. Raises PeerLost when the other rank is gone or silent too long."""
        latent = latent.contiguous()  # kept until it has gone
        with talking():
            if len(self.going) >= AHEAD:  # a rank does not run away from a slower one
                self.going.popleft()[1].wait()
            work = dist.isend(latent, self.target)
        assert work is not None
        self.going.append((latent, work))

    def close(self) -> None:
        """Wait until everything has gone. Raises PeerLost."""
        with talking():
            while self.going:
                self.going.popleft()[1].wait()


@torch.no_grad()
def walk_rank(
    model: Denoiser,
    rollouts: Sequence[Rollout],
    rank: int,
    ranks: int,
    passes: Passes = PASSES,
    given: Sequence[Tensor | None] | None = None,
) -> None:
    """What rank ``rank`` of ``ranks`` does: its steps of every rollout, one rollout after the other.

    given: the clean latents that each rollout continues, if any; see `rollout.walk.walk_steps`.
    """
    if not rollouts:
        return
    steps = split_steps(rollouts[0].grid.steps, ranks)[rank]
    outbox = Outbox(rank + 1)
    inbox = Inbox(rank - 1, _shapes(rollouts), rollouts[0].text) if rank else None
    for rollout, clip in zip(rollouts, given or [None] * len(rollouts), strict=True):
        walker = walk_steps(model, rollout, steps, lambda _: inbox.take(), clip, passes=passes)  # type: ignore[union-attr]
        for _, latent in walker:
            outbox.put(latent)
    outbox.close()


def finished_blocks(rollouts: Sequence[Rollout], ranks: int) -> Iterator[Tensor]:
    """What arrives at the codec's place: the clean latents (B, C, k, H, W) of all blocks, rollout after rollout."""
    if rollouts:
        inbox = Inbox(ranks - 1, _shapes(rollouts), rollouts[0].text)
        for _ in _shapes(rollouts):
            yield inbox.take()


def _shapes(rollouts: Sequence[Rollout]) -> Iterator[Sequence[int]]:
    """The shapes of all messages, in their order."""
    return chain.from_iterable(
        [(len(rollout.samples), *rollout.shape)] * (_blocks(rollout) - rollout.grid.given) for rollout in rollouts
    )


def _blocks(rollout: Rollout) -> int:
    if rollout.grid.blocks is None:
        raise ValueError("a pipeline's rollouts have a number of blocks")
    return rollout.grid.blocks
