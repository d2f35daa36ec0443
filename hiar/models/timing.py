"""Timing of a device's work; a GPU computes while the host goes on, so the clock is read after a synchronisation."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def timed(call: Callable[[], Tensor], warm: int, counted: int, enough: float = math.inf) -> tuple[Tensor, float]:
    """A call's result, and its median seconds over ``counted`` calls, after ``warm`` warm-up calls.

    enough: seconds of calls after which there are no more, except that there are at least two. If even the warm-up was
    not over by then, the later half counts.
    """
    seconds: list[float] = []
    while len(seconds) < warm + counted and (len(seconds) < 2 or sum(seconds) < enough):
        start = time.perf_counter()
        out = call()
        seconds.append(now(out.device) - start)
    skipped = warm if len(seconds) > warm else len(seconds) // 2
    return out, statistics.median(seconds[skipped:])


def now(device: torch.device) -> float:
    """The time in seconds, once the device has done all work requested of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
