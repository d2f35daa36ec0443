"""KV caches as ring buffers: the keys and values of context blocks, and what a block sees of them.

Both kinds have a ring of ``window`` slots for every cache of a grid and every layer of a network. Block n lies in slot
n mod window; with sinks, the first ``sinks`` blocks keep their slots and later ones share the rest. A block in progress
lies in the slot it will have as context, so the keys a block sees are always the first slots of its ring. Attention
does not depend on the order of keys, which are stored rotated to their positions. If ``turn``, sinks are rotated along
with the window, so that they stay at its start; else they keep their first rotation. Stored keys and values carry no
gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hiar.models.rotary import rotate

KeysValues = tuple[Tensor, Tensor]  # each (B, tokens, heads, head_dim)


class Rings:
    """Rings written in place and read as they lie: nothing is moved, gathered or masked.

    Memory is allocated when a layer first writes, in the layout (B, window * tokens, heads, head_dim).
    """

    def __init__(self, caches: int, window: int, sinks: int = 0, turn: bool = True) -> None:
        self.window, self.sinks, self.turn = window, sinks, turn and sinks > 0
        self._rings: list[dict[int, KeysValues]] = [{} for _ in range(caches)]
        self._sink_keys: list[dict[int, Tensor]] = [{} for _ in range(caches)]  # with their first rotation

    def put(self, cache: int, layer: int, block: int, key: Tensor, value: Tensor) -> None:
        """Store a block's keys and values (B, tokens, heads, head_dim) in its slot."""
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
        """Store a block's keys and values, and return those that it sees, its own included, as views.

        sink_shift: the rotation that takes the sinks from their first positions to the start of the block's window.
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
    """Rings of a rollout that is recorded for backward: one tensor per block, never overwritten.

    What a block saw is thus still there when its layers are recomputed in backward, although the window has moved on; a
    block that several passes see is in memory once. Gradients reach only a block's own keys and values.
    """

    window: int
    sinks: int = 0
    turn: bool = True
    _slots: dict[tuple[int, int], dict[int, KeysValues]] = field(default_factory=dict)  # by cache and layer, by slot

    def put(self, cache: int, layer: int, block: int, key: Tensor, value: Tensor) -> None:
        """As `Rings.put`."""
        own = {slot(block, self.window, self.sinks): (key.detach(), value.detach())}
        self._slots[cache, layer] = self._slots.get((cache, layer), {}) | own  # a new dict: copies keep theirs

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
        """A copy of one layer's rings as they are now."""
        return replace(self, _slots={known: slots for known, slots in self._slots.items() if known[1] == layer})

    def take(self, others: RecordedRings) -> None:
        """Take over the rings of all layers that ``others`` has."""
        self._slots.update(others._slots)


def ring_bytes(layers: int, dim: int, tokens: int, slots: int, itemsize: int) -> int:
    """Bytes of one cache's rings for one video: keys and values of ``slots`` blocks of ``tokens`` tokens per layer."""
    return 2 * layers * dim * tokens * slots * itemsize


def slot(block: int, window: int, sinks: int) -> int:
    """The slot of a block in its ring."""
    return block if block < sinks else sinks + (block - sinks) % (window - sinks)
