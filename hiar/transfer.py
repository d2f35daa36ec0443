"""Between the host's memory and a GPU's, without either waiting for the other longer than it has to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def upload(x: Tensor, device: torch.device) -> Tensor:
    """What was drawn or computed in the host's memory, on the device; a GPU is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def download(x: Tensor) -> Callable[[], Tensor]:
    """Begin to copy ``x`` to the host; the copy is there when what this returns is called, which waits for no more."""
    if x.device.type != "cuda":
        return lambda: x
    copy, copied = x.to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record(torch.cuda.current_stream(x.device))

    def arrived() -> Tensor:
        copied.synchronize()
        return copy.clone()  # in plain memory: torch rounds pinned one up to a power of two, and many blocks are kept

    return arrived


def arrivals(asked: Iterable[Callable[[], T]], ahead: int) -> Iterator[T]:
    """What is asked for, one after the other, each once ``ahead`` more have been asked for: see `lead`."""
    under_way: deque[Callable[[], T]] = deque()
    for arrive in asked:
        under_way.append(arrive)
        if len(under_way) > ahead:
            yield under_way.popleft()()
    while under_way:
        yield under_way.popleft()()


def lead(device: torch.device) -> int:
    """How much is asked for ahead of what is waited for: a GPU computes the next block while the host writes the last.

    On a CPU asking is computing, and the last would only be late.
    """
    return 1 if device.type == "cuda" else 0
