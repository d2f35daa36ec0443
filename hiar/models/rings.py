"""The keys and values of context blocks in memory: rings that are written in place and attended to as they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from hiar.models.rotary import rotate


class Rings:
    """A ring of ``window`` slots for every cache of a grid and every layer of a network.

    Block n lies in slot n mod window (the first ``sinks`` blocks keep a slot for good), and a block under way in the
    slot it would have as context. So the keys a block sees are always the first slots of its ring: nothing is moved,
    gathered or masked. Attention does not ask in which order keys lie: they are stored rotated to their positions.
    Memory is taken when a layer first writes, in the layout (B, window * tokens, heads, head_dim).

    turn: sinks are turned with the window, so that they stay at its start; else they keep their first rotation.
    """

    def __init__(self, caches: int, window: int, sinks: int = 0, turn: bool = True) -> None:
        self.window, self.sinks, self.turn = window, sinks, turn and sinks > 0
        self._rings: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(caches)]
        self._sink_keys: list[dict[int, Tensor]] = [{} for _ in range(caches)]  # as rotated when they were written

    def put(self, cache: int, layer: int, block: int, key: Tensor, value: Tensor) -> None:
        """Lay a block's keys and values (B, tokens, heads, head_dim) in its slot; they take no gradients along."""
        tokens = key.shape[1]
        ring = self._rings[cache].get(layer)
        if ring is None:
            shape = (len(key), self.window * tokens, *key.shape[2:])
            ring = self._rings[cache][layer] = (key.new_empty(shape), value.new_empty(shape))
        start = self._slot(block) * tokens
        for stored, new in zip(ring, (key, value), strict=True):
            stored[:, start : start + tokens] = new.detach()
        if self.turn and block < self.sinks:
            kept = self._sink_keys[cache].setdefault(
                layer, key.new_empty(len(key), self.sinks * tokens, *key.shape[2:])
            )
            kept[:, start : start + tokens] = key.detach()

    def seen(self, cache: int, layer: int, block: int, sink_shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values that a block sees, its own included, as a view.

        sink_shift: the rotation that takes the sinks from where they were to the start of the block's window.
        """
        keys, values = self._rings[cache][layer]
        tokens = keys.shape[1] // self.window
        if sink_shift is not None:
            keys[:, : self.sinks * tokens] = rotate(self._sink_keys[cache][layer], sink_shift)
        filled = min(block + 1, self.window) * tokens
        return keys[:, :filled], values[:, :filled]

    def around(
        self, cache: int, layer: int, block: int, key: Tensor, value: Tensor, sink_shift: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What `seen` gives after `put`, as new tensors through which gradients reach the block's own keys."""
        tokens = key.shape[1]
        self.put(cache, layer, block, key, value)
        start = self._slot(block) * tokens
        seen = self.seen(cache, layer, block, sink_shift)
        parts = [
            torch.cat([stored[:, :start], own, stored[:, start + tokens :]], dim=1)
            for stored, own in zip(seen, (key, value), strict=True)
        ]
        return parts[0], parts[1]

    def _slot(self, block: int) -> int:
        return block if block < self.sinks else self.sinks + (block - self.sinks) % (self.window - self.sinks)
