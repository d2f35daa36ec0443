"""Timing of a device's work; a GPU computes while the host goes on, so the clock is read after a synchronisation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def timed(call: Callable[[], Tensor], warm: int, counted: int) -> tuple[Tensor, float]:
    """A call's result, and its median seconds over ``counted`` calls, after ``warm`` warm-up calls."""
    seconds = []
    for _ in range(warm + counted):
        start = time.perf_counter()
        out = call()
        seconds.append(now(out.device) - start)
    return out, statistics.median(seconds[warm:])


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done all work requested of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
