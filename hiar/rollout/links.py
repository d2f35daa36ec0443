"""What a process of a pipeline needs of its neighbours: a way in and a way out for blocks, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Shapes = Sequence[Sequence[int]]  # of all the blocks of a walk, in the order they travel


class PeerLost(Exception):
    """Another process of the group is gone, or silent for longer than the group waits."""


class Inbox(Protocol):
    """Blocks from the process before."""

    def take(self) -> Tensor:
        """The next block, waited for if need be. Raises PeerLost when the other process is gone or silent too long."""


class Outbox(Protocol):
    """Blocks to the process after."""

    def put(self, latent: Tensor) -> None:
        """Send a block on; it should not be changed afterwards. Raises PeerLost."""

    def close(self) -> None:
        """Wait until everything has gone. Raises PeerLost."""


class Links(Protocol):
    """The place of process ``rank`` in a line of ``ranks`` that denoise and one, the last, that takes their results.

    Walks follow each other: both ends of a link are made anew for each, for blocks of the type of ``like``.
    """

    @property
    def rank(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    def inbox(self, shapes: Shapes, like: Tensor) -> Inbox:
        """From the process before."""

    def outbox(self, shapes: Shapes, like: Tensor) -> Outbox:
        """To the process after."""
