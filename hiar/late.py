"""Libraries that diffusers imports wherever they are installed, and few commands need: kept out until one does.

They would be a quarter of the time that a stage takes to begin.
"""

from __future__ import annotations

import sys

LIBRARIES = ("transformers", "scipy")  # of Wan's text encoder, and of intervals


def keep_out() -> None:
    """Have whoever looks for them find that they are not there."""
    for name in LIBRARIES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def let_in(name: str) -> None:
    """To be called before one of them is imported."""
    if sys.modules.get(name, sys) is None:
        del sys.modules[name]
