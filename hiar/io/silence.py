"""What NCCL finds out about other processes, told in a line of ours before torch ends this one with a page of its own.

A GPU waits for what another process sends, and this process for its GPU: no exception reaches it. torch's watchdog sees
what is late or broken, leaves a minute for notes on it, then aborts the process with a stack of C++. In that minute a
thread says what has happened, and ends the process as one that lost another.
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

POLL = 1.0  # seconds between looks, of the sixty that torch leaves


def found_by(device: torch.device) -> Callable[[], Any] | None:
    """What asks the process group's backend for what it has found; None of one whose waits raise exceptions."""
    if device.type != "cuda":
        return None
    assert dist.group.WORLD is not None
    ask: Callable[[], Any] | None = getattr(dist.group.WORLD._get_backend(device), "get_error", None)
    return ask


@contextmanager
def heard(ask: Callable[[], Any] | None, line: Callable[[str], str]) -> Iterator[None]:
    """Within the body the process ends with ``line`` of what was found, once anything is."""
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
