"""SIGTERM as a request: what is at work comes to a state that it can be taken up from, then ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDED = 128 + signal.SIGTERM  # exit code of a process that ended at this request


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yields what tells whether SIGTERM came in the body, where it does no more than that.

    In a thread that is not the main one, which signals do not reach, the answer is always no.
    """
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        came.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
