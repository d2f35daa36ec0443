"""Bytes of live tensors, counted during a computation: on real tensors, or on fake ones without storage.

`imagined` tensors have shapes and types but no memory (torch's fake tensors). A step of a model of any size is thus
counted by running the step itself, with autograd and checkpointing as they are, and no table of what a layer keeps.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hiar.models import rotary


class Counting(TorchDispatchMode):
    """Counts the storages that operations within it allocate, until they are freed.

    What existed before, such as weights, is not counted; nor is a kernel's own workspace. ``peaks``: the most bytes
    alive within each `phase`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self._peak = 0
        self.peaks: dict[str, int] = {}
        self._known: dict[int, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase of the computation, with its own peak."""
        self._peak = self.live
        yield
        self.peaks[name] = self._peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._see((args, kwargs), counted=False)
        out = func(*args, **(kwargs or {}))
        self._see(out, counted=True)
        return out

    def _see(self, values: Any, counted: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known[storage._cdata] = size = storage.nbytes() if counted else 0
                self.live += size
                self._peak = max(self._peak, self.live)
                weakref.finalize(storage, self._freed, storage._cdata)

    def _freed(self, storage: int) -> None:
        self.live -= self._known.pop(storage)


@contextmanager
def imagined() -> Iterator[None]:
    """Within the body tensors have no memory. Earlier tensors may take part, but without their values."""
    rotary.forget()  # so that the count does not depend on what is cached
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        rotary.forget()  # what was cached within has no values


def storage_bytes(tensors: Any) -> int:
    """Bytes of the storages of nested tensors, each counted once; also of tensors on the meta device."""
    storages = {id(s): s for t in tree_leaves(tensors) if isinstance(t, Tensor) for s in [t.untyped_storage()]}
    return sum(storage.nbytes() for storage in storages.values())


def network_bytes(*networks: torch.nn.Module) -> int:
    """Bytes of the parameters and buffers of networks."""
    return storage_bytes([[*network.parameters(), *network.buffers()] for network in networks])
