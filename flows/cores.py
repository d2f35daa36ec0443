"""The machine's cores, shared by stages that run at the same time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hiar.config import Runtime
from hiar.io.cores import process_cores


class Cores:
    """A number of cores, of which threads take some and give them back."""

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._changed = threading.Condition()

    @contextmanager
    def take(self, wanted: int) -> Iterator[None]:
        """Wait for ``wanted`` cores, or for all if there are fewer, and hold them during the body."""
        taken = min(wanted, self._count)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()


def usable_cores(runtime: Runtime) -> int:
    """The number of cores of this process; 1 if a GPU does the work, so that stages run one after another."""
    import torch

    if runtime.device != "cpu" and torch.cuda.is_available():
        return 1
    return process_cores()
