"""Waiting for what may take long on a busy machine, and not for ever for what never comes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

PATIENCE = 600.0  # seconds: no bound on how fast anything is, but an end to a test that would hang


def wait_until(condition: Callable[[], object], pause: Callable[[], object] = lambda: time.sleep(0.02)) -> None:
    """Return once ``condition`` holds; between looks ``pause`` is called, as for pages, which stand still else."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"not seen in {PATIENCE:.0f} s")
        pause()
