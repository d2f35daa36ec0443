"""Links by torch.distributed: between GPUs (NCCL), and between processes that torchrun started (gloo)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from hiar.rollout.links import PeerLost, Shapes

AHEAD = 2  # messages asked for before they are needed, so that they travel beside the work


@contextmanager
def talking() -> Iterator[None]:
    """Around what needs other processes, and nothing else: its failures become PeerLost."""
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        raise PeerLost(" ".join(str(error).split())[:200]) from error


@dataclass(frozen=True)
class Messages:
    """`Links` as point-to-point messages of the default process group."""

    rank: int
    ranks: int

    def inbox(self, shapes: Shapes, like: Tensor) -> MessageInbox:
        """From the process before."""
        return MessageInbox(self.rank - 1, shapes, like)

    def outbox(self, shapes: Shapes, like: Tensor) -> MessageOutbox:
        """To the process after."""
        return MessageOutbox(self.rank + 1)


class MessageInbox:
    """Blocks are received ahead of their use."""

    def __init__(self, source: int, shapes: Shapes, like: Tensor) -> None:
        self.source, self.shapes, self.like = source, iter(shapes), like
        self.coming: deque[tuple[Tensor, dist.Work]] = deque()
        for _ in range(AHEAD):
            self._ask()

    def take(self) -> Tensor:
        """The next block."""
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


class MessageOutbox:
    """Sending goes on while this process works."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.going: deque[tuple[Tensor, dist.Work]] = deque()

    def put(self, latent: Tensor) -> None:
        """Send a block on."""
        latent = latent.contiguous()  # kept until it has gone
        with talking():
            if len(self.going) >= AHEAD:  # a process does not run away from a slower one
                self.going.popleft()[1].wait()
            work = dist.isend(latent, self.target)
        assert work is not None
        self.going.append((latent, work))

    def close(self) -> None:
        """Wait until everything has gone."""
        with talking():
            while self.going:
                self.going.popleft()[1].wait()
