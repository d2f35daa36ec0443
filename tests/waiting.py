"""Waiting for what may take long on a busy machine, with a limit for what never happens."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

PATIENCE = 600.0  # seconds: not a bound on speed, but an end for a test that would hang


def wait_until(condition: Callable[[], object], pause: Callable[[], object] = lambda: time.sleep(0.02)) -> None:
    """Return once ``condition`` holds; ``pause`` is called between checks, because a browser page runs only then."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not seen in {PATIENCE:.0f} s")
        pause()
