"""NCCL's errors about other processes, reported in one line before torch aborts with a page of stack trace.

A GPU waits for what another process sends, and this process for its GPU, so no exception is raised. torch's watchdog
notices what is late or broken, leaves a minute for debugging dumps, then aborts the process with a C++ stack. In that
minute a thread prints what has happened, and ends the process with the exit code of one that lost another.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from hiar.errors import LOST, say

POLL = 1.0  # seconds between polls; torch leaves sixty in all


def found_by(device: torch.device) -> Callable[[], Any] | None:
    """A function that returns the error that the backend has found; None for gloo, whose waits raise exceptions."""
    if device.type != "cuda":
        return None
    assert dist.group.WORLD is not None
    ask: Callable[[], Any] | None = getattr(dist.group.WORLD._get_backend(device), "get_error", None)
    return ask


@contextmanager
def heard(ask: Callable[[], Any] | None, line: Callable[[str], str]) -> Iterator[None]:
    """During the body, once ``ask`` returns an error, print ``line`` of it and exit the process with code `LOST`."""
    if ask is None:
        yield
        return
    over = threading.Event()
    listener = threading.Thread(target=_listen, args=(ask, line, over), daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()


def _listen(ask: Callable[[], Any], line: Callable[[str], str], over: threading.Event) -> None:
    while not over.wait(POLL):
        if (found := ask().name) != "SUCCESS":
            say(line(f"NCCL: {found}"))
            os._exit(LOST)  # the main thread is in a wait that nothing ends
