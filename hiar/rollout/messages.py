"""Links over torch.distributed: between GPUs (NCCL), and between processes that torchrun started (gloo)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from hiar.rollout.links import PeerLost, Shapes

AHEAD = 2  # receives or sends pending at a time, so that transfers overlap with computation


@contextmanager
def talking() -> Iterator[None]:
    """Turn failures of the body, which does nothing but communicate, into PeerLost."""
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
        """Blocks from the previous process."""
        return MessageInbox(self.rank - 1, shapes, like)

    def outbox(self, shapes: Shapes, like: Tensor) -> MessageOutbox:
        """Blocks to the next process."""
        return MessageOutbox(self.rank + 1)


class MessageInbox:
    """Receives blocks ahead of their use."""

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
    """Sends blocks while this process computes."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.going: deque[tuple[Tensor, dist.Work]] = deque()

    def put(self, latent: Tensor) -> None:
        """Send a block."""
        latent = latent.contiguous()  # kept alive until it is sent
        with talking():
            if len(self.going) >= AHEAD:  # a process may not run far ahead of a slower one
                self.going.popleft()[1].wait()
            work = dist.isend(latent, self.target)
        assert work is not None
        self.going.append((latent, work))

    def close(self) -> None:
        """Wait until all blocks have been sent."""
        with talking():
            while self.going:
                self.going.popleft()[1].wait()
