"""How many processor cores are available."""

from __future__ import annotations

import os


def process_cores() -> int:
    """The number of cores that this process may use, where the system reports it; otherwise of all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
