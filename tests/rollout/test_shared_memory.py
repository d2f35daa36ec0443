"""Ring buffers of blocks between neighbouring processes: nothing is overwritten, and nobody waits for an ended one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hiar.rollout.links import PeerLost
from hiar.rollout.shared_memory import SLOTS, SharedMemory, line_of

SHAPES = [(1, 3), (2, 3), (2, 3)] * SLOTS  # the first is not the largest
BLOCKS = [torch.full(shape, float(number)) for number, shape in enumerate(SHAPES)]


@pytest.fixture
def pair() -> Iterator[tuple[SharedMemory, SharedMemory]]:
    """Two neighbours that wait a tenth of a second for each other."""
    with line_of(2) as line:
        yield SharedMemory(0, 1, line[0], 0.1), SharedMemory(1, 1, line[1], 0.1)


def test_blocks_of_any_size_arrive_as_they_were_sent_walk_after_walk(pair: tuple[SharedMemory, SharedMemory]) -> None:
    first, last = pair
    for dtype in (torch.float32, torch.bfloat16):
        blocks = [block.to(dtype) for block in BLOCKS]
        outbox, inbox = first.outbox(SHAPES, blocks[0]), last.inbox(SHAPES, blocks[0])
        arrived = []
        for number, block in enumerate(blocks):  # always as far ahead as possible
            outbox.put(block)
            if number >= SLOTS - 1:
                arrived.append(inbox.take())
        arrived += [inbox.take() for _ in range(SLOTS - 1)]
        outbox.close()
        assert all(torch.equal(new, old) for new, old in zip(arrived, blocks, strict=True))


def test_a_process_waits_for_a_free_slot_and_overwrites_nothing(pair: tuple[SharedMemory, SharedMemory]) -> None:
    first, last = pair
    outbox, inbox = first.outbox(SHAPES, BLOCKS[0]), last.inbox(SHAPES, BLOCKS[0])
    with pytest.raises(PeerLost, match="timed out"):
        for block in BLOCKS:
            outbox.put(block)
    for block in BLOCKS[:SLOTS]:
        assert torch.equal(inbox.take(), block)


def test_a_silent_neighbour_is_given_up(pair: tuple[SharedMemory, SharedMemory]) -> None:
    first, last = pair
    with pytest.raises(PeerLost, match="timed out"):
        last.inbox(SHAPES, BLOCKS[0])
    first.outbox(SHAPES, BLOCKS[0])
    inbox = last.inbox(SHAPES, BLOCKS[0])
    with pytest.raises(PeerLost, match="timed out"):
        inbox.take()


def test_blocks_of_an_ended_neighbour_arrive_before_peer_lost(
    pair: tuple[SharedMemory, SharedMemory],
) -> None:
    first, last = pair
    outbox, inbox = first.outbox(SHAPES, BLOCKS[0]), last.inbox(SHAPES, BLOCKS[0])
    outbox.put(BLOCKS[0])
    assert first.neighbours[1] is not None
    first.neighbours[1].close()
    assert torch.equal(inbox.take(), BLOCKS[0])
    with pytest.raises(PeerLost, match="ended"):
        inbox.take()


def test_nothing_is_sent_to_a_neighbour_that_has_ended(pair: tuple[SharedMemory, SharedMemory]) -> None:
    first, last = pair
    outbox = first.outbox(SHAPES, BLOCKS[0])
    assert last.neighbours[0] is not None
    last.neighbours[0].close()
    with pytest.raises(PeerLost):
        outbox.put(BLOCKS[0])
