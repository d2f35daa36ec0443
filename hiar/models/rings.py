"""The keys and values of context blocks in memory, and what a block sees of them (KV caches).

Both kinds have a ring of ``window`` slots for every cache of a grid and every layer of a network. Block n lies in slot
n mod window (the first ``sinks`` blocks keep a slot for good), and a block under way in the slot it would have as
context. So the keys a block sees are always the first slots of its ring. Attention does not ask in which order keys
lie: they are stored rotated to their positions. Where sinks ``turn``, they are turned with the window, so that they
stay at its start; else they keep their first rotation. What is kept takes no gradients along.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hiar.models.rotary import rotate

KeysValues = tuple[Tensor, Tensor]  # each (B, tokens, heads, head_dim)


class Rings:
    """Rings that are written in place and attended to as they lie: nothing is moved, gathered or masked.

    Memory is taken when a layer first writes, in the layout (B, window * tokens, heads, head_dim).
    """

    def __init__(self, caches: int, window: int, sinks: int = 0, turn: bool = True) -> None:
        self.window, self.sinks, self.turn = window, sinks, turn and sinks > 0
        self._rings: list[dict[int, KeysValues]] = [{} for _ in range(caches)]
        self._sink_keys: list[dict[int, Tensor]] = [{} for _ in range(caches)]  # as rotated when they were written

    def put(self, cache: int, layer: int, block: int, key: Tensor, value: Tensor) -> None:
        """Lay a block's keys and values (B, tokens, heads, head_dim) in its slot."""
        if key.requires_grad:
            raise ValueError("what is written in place has no gradients: record a rollout with RecordedRings")
        tokens = key.shape[1]
        ring = self._rings[cache].get(layer)
        if ring is None:
            shape = (len(key), self.window * tokens, *key.shape[2:])
            ring = self._rings[cache][layer] = (key.new_empty(shape), value.new_empty(shape))
        start = slot(block, self.window, self.sinks) * tokens
        for stored, new in zip(ring, (key, value), strict=True):
            stored[:, start : start + tokens] = new
        if self.turn and block < self.sinks:
            kept = self._sink_keys[cache].setdefault(
                layer, key.new_empty(len(key), self.sinks * tokens, *key.shape[2:])
            )
            kept[:, start : start + tokens] = key

    def show(
        self, cache: int, layer: int, block: int, key: Tensor, value: Tensor, sink_shift: Tensor | None
    ) -> KeysValues:
        """Put a block's keys and values, and give those that it sees, its own included, as a view.

        sink_shift: the rotation that takes the sinks from where they were to the start of the block's window.
        """
        self.put(cache, layer, block, key, value)
        keys, values = self._rings[cache][layer]
        tokens = key.shape[1]
        if sink_shift is not None:
            keys[:, : self.sinks * tokens] = rotate(self._sink_keys[cache][layer], sink_shift)
        filled = min(block + 1, self.window) * tokens
        return keys[:, :filled], values[:, :filled]

    def drop(self, cache: int) -> None:
        """Free a cache that no block will read again."""
        self._rings[cache], self._sink_keys[cache] = {}, {}


@dataclass(frozen=True)
class RecordedRings:
    """Rings of a rollout that is recorded for backward: a tensor a block, which nothing ever writes to again.

    What a block saw is thus still there when its layers are computed anew for their gradients, although the window has
    slid on by then; blocks that several passes see are in memory once. Gradients reach a block's own keys alone.
    """

    window: int
    sinks: int = 0
    turn: bool = True
    _slots: dict[tuple[int, int], dict[int, KeysValues]] = field(default_factory=dict)  # by cache and layer, by slot

    def put(self, cache: int, layer: int, block: int, key: Tensor, value: Tensor) -> None:
        """As `Rings.put`."""
        own = {slot(block, self.window, self.sinks): (key.detach(), value.detach())}
        self._slots[cache, layer] = self._slots.get((cache, layer), {}) | own  # anew: copies keep what they had

    def show(
        self, cache: int, layer: int, block: int, key: Tensor, value: Tensor, sink_shift: Tensor | None
    ) -> KeysValues:
        """As `Rings.show`, in new tensors."""
        self.put(cache, layer, block, key, value)
        shown = self._slots[cache, layer] | {slot(block, self.window, self.sinks): (key, value)}
        if self.turn and sink_shift is not None:
            shown |= {sink: (rotate(shown[sink][0], sink_shift), shown[sink][1]) for sink in range(self.sinks)}
        seen = [shown[place] for place in range(min(block + 1, self.window))]
        return torch.cat([keys for keys, _ in seen], dim=1), torch.cat([values for _, values in seen], dim=1)

    def drop(self, cache: int) -> None:
        """As `Rings.drop`."""
        for known in [known for known in self._slots if known[0] == cache]:
            del self._slots[known]

    def of(self, layer: int) -> RecordedRings:
        """A layer's rings as they are now, apart from these."""
        return replace(self, _slots={known: slots for known, slots in self._slots.items() if known[1] == layer})

    def take(self, others: RecordedRings) -> None:
        """Take over what other rings hold of their layers."""
        self._slots.update(others._slots)


def ring_bytes(layers: int, dim: int, tokens: int, slots: int, itemsize: int) -> int:
    """Bytes of one cache's rings for one video: keys and values of ``slots`` blocks of so many tokens in all layers."""
    return 2 * layers * dim * tokens * slots * itemsize


def slot(block: int, window: int, sinks: int) -> int:
    """The place of a block in its ring."""
    return block if block < sinks else sinks + (block - sinks) % (window - sinks)
