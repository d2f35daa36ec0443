"""Seconds of what a device computes; a GPU does so while the host goes on, and is waited for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def timed(call: Callable[[], Tensor], warm: int, counted: int) -> tuple[Tensor, float]:
    """What a call gives, and its median seconds over ``counted`` calls, after ``warm`` ones that do not count."""
    seconds = []
    for _ in range(warm + counted):
        start = time.perf_counter()
        out = call()
        seconds.append(now(out.device) - start)
    return out, statistics.median(seconds[warm:])


def now(device: torch.device) -> float:
    """Seconds of a clock, once what was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
