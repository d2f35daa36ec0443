"""Libraries that diffusers imports whenever they are installed but few commands need: kept out until one does.

Importing them takes a quarter of a stage's startup time.
"""

from __future__ import annotations

import sys

LIBRARIES = ("transformers", "scipy")  # for Wan's text encoder, and for confidence intervals


def keep_out() -> None:
    """Make these libraries appear not to be installed."""
    for name in LIBRARIES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def let_in(name: str) -> None:
    """Allow the import of a library; call this before importing it."""
    if sys.modules.get(name, sys) is None:
        del sys.modules[name]
