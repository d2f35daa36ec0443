"""Interface of the connections between neighbouring processes of a pipeline: blocks arrive and leave in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Shapes = Sequence[Sequence[int]]  # of all blocks that a link carries, in order


class PeerLost(Exception):
    """Another process of the group has ended, or has been silent for too long."""


class Inbox(Protocol):
    """Receives blocks from the previous process."""

    def take(self) -> Tensor:
        """The next block, waiting if necessary. Raises PeerLost if its sender has ended or is silent too long."""


class Outbox(Protocol):
    """Sends blocks to the next process."""

    def put(self, latent: Tensor) -> None:
        """Send a block; the caller must not change it afterwards. Raises PeerLost."""

    def close(self) -> None:
        """Wait until all blocks have been handed over. Raises PeerLost."""


class Links(Protocol):
    """Connections of process ``rank`` in a pipeline of ``ranks`` that denoise and a last one that takes their results.

    Both ends of a link are created anew for each sequence of rollouts, for blocks of the dtype of ``like``.
    """

    @property
    def rank(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    def inbox(self, shapes: Shapes, like: Tensor) -> Inbox:
        """Blocks from the previous process."""

    def outbox(self, shapes: Shapes, like: Tensor) -> Outbox:
        """Blocks to the next process."""
