"""Asynchronous copies between the host's memory and a GPU's, so that neither waits longer than it must."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def upload(x: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device; does not wait for a GPU."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def download(x: Tensor) -> Callable[[], Tensor]:
    """Start copying ``x`` to the host; calling the result waits for this copy only, and returns it."""
    if x.device.type != "cuda":
        return lambda: x
    copy, copied = x.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record(torch.cuda.current_stream(x.device))

    def arrived() -> Tensor:
        copied.synchronize()
        return copy.clone()  # pageable: torch rounds pinned memory up to a power of two, and many blocks are kept

    return arrived


def arrivals(asked: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """The results of ``asked`` in order, each awaited only after the next ``ahead`` were started: see `lead`."""
    under_way: deque[Callable[[], T]] = deque()
    for arrive in asked:
        under_way.append(arrive)
        if len(under_way) > ahead:
            yield under_way.popleft()()
    while under_way:
        yield under_way.popleft()()


def lead(device: torch.device) -> int:
    """How many results to start before waiting for one: a GPU computes the next block while the host writes the last.

    0 on a CPU, where starting a result computes it, so starting one more would only delay the last.
    """
    return 1 if device.type == "cuda" else 0
