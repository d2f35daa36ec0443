"""Links over shared memory, between processes of one host that compute on its CPU.

A block is copied into a ring buffer that both processes have mapped, and a byte through a socket announces it. No other
thread has to run for that: torch.distributed moves blocks with threads of its own, which wait for a core while all
cores compute.
"""

from __future__ import annotations

import math
import mmap
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from hiar.rollout.links import PeerLost, Shapes

SLOTS = 8  # of a ring: how many blocks a process may be ahead of the next one
RING, BLOCK, TAKEN = b"r", b"b", b"t"  # one-byte messages: a ring is attached, it has a new block, a slot is free again

Neighbours = tuple[socket.socket | None, socket.socket | None]  # connections to the process before and the one after


@contextmanager
def line_of(processes: int) -> Iterator[list[Neighbours]]:
    """Yield, for each process about to be started, the connections to its neighbours.

    This process closes its copies at the end of the body, when the started processes should have theirs; only then can
    each notice that a neighbour has ended.
    """
    with ExitStack() as ends:
        pairs = [[ends.enter_context(end) for end in socket.socketpair()] for _ in range(processes - 1)]
        befores, afters = [None, *(pair[1] for pair in pairs)], [*(pair[0] for pair in pairs), None]
        yield list(zip(befores, afters, strict=True))


@dataclass(frozen=True)
class SharedMemory:
    """`Links` of a process to its neighbours. seconds: how long a neighbour may be silent."""

    rank: int
    ranks: int
    neighbours: Neighbours
    seconds: float

    def inbox(self, shapes: Shapes, like: Tensor) -> RingInbox:
        """Blocks from the previous process."""
        return RingInbox(self._connection(0), shapes, like)

    def outbox(self, shapes: Shapes, like: Tensor) -> RingOutbox:
        """Blocks to the next process."""
        return RingOutbox(self._connection(1), shapes, like)

    def _connection(self, side: int) -> socket.socket:
        connection = self.neighbours[side]
        assert connection is not None
        connection.settimeout(self.seconds)
        return connection


class RingInbox:
    """The receiving end of a ring."""

    def __init__(self, peer: socket.socket, shapes: Shapes, like: Tensor) -> None:
        self.peer, self.shapes = peer, shapes
        self.taken = self.arrived = 0
        with talking():
            told, files, *_ = socket.recv_fds(peer, 1, 1)
        if told != RING:
            raise PeerLost("the process before has ended")
        self.ring = _map(files[0], shapes, like)
        os.close(files[0])

    def take(self) -> Tensor:
        """The next block."""
        if self.taken == self.arrived:
            self.arrived += _count(self.peer)
        shape = self.shapes[self.taken]
        latent = self.ring[self.taken % SLOTS][: math.prod(shape)].view(*shape).clone()
        self.taken += 1
        with suppress(OSError):  # a neighbour that has ended is noticed once all its blocks are taken
            self.peer.sendall(TAKEN)
        return latent


class RingOutbox:
    """The sending end of a ring, which creates it and hands it over as an open file without a name."""

    def __init__(self, peer: socket.socket, shapes: Shapes, like: Tensor) -> None:
        self.peer = peer
        self.sent = self.returned = 0
        with _memory(_slot(shapes) * like.element_size() * SLOTS) as file:
            self.ring = _map(file, shapes, like)
            with talking():
                socket.send_fds(peer, [RING], [file])

    def put(self, latent: Tensor) -> None:
        """Send a block, once a slot is free."""
        while self.sent - self.returned == SLOTS:
            self.returned += _count(self.peer)
        self.ring[self.sent % SLOTS][: latent.numel()].view(latent.shape).copy_(latent)
        self.sent += 1
        with talking():
            self.peer.sendall(BLOCK)

    def close(self) -> None:
        """Wait until all blocks have been taken."""
        while self.returned < self.sent:
            self.returned += _count(self.peer)


@contextmanager
def talking() -> Iterator[None]:
    """Turn failures of the body, which does nothing but communicate, into PeerLost."""
    try:
        yield
    except OSError as error:
        raise PeerLost(str(error)) from error


def _count(peer: socket.socket) -> int:
    """The number of messages that have arrived, at least one; waits for it."""
    with talking():
        told = peer.recv(SLOTS)
    if not told:
        raise PeerLost("its neighbour has ended")
    return len(told)


@contextmanager
def _memory(size: int) -> Iterator[int]:
    """An open file without a name: in memory where the system has such files, else on disk."""
    if sys.platform != "linux":
        with tempfile.TemporaryFile() as on_disk:
            on_disk.truncate(size)
            yield on_disk.fileno()
        return
    file = os.memfd_create("hiar-ring")
    try:
        os.ftruncate(file, size)
        yield file
    finally:
        os.close(file)


def _slot(shapes: Shapes) -> int:
    """Elements of the largest block."""
    return max(map(math.prod, shapes))


def _map(file: int, shapes: Shapes, like: Tensor) -> Tensor:
    """The ring in a file, as (slots, elements); the mapping lives as long as the tensor."""
    size = _slot(shapes)
    memory = mmap.mmap(file, size * like.element_size() * SLOTS)
    return torch.frombuffer(memory, dtype=like.dtype).view(SLOTS, size)
