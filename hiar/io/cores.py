"""How many processor cores there are to share."""

from __future__ import annotations

import os


def process_cores() -> int:
    """The cores this process may use, where the system tells; else all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
