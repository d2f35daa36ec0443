"""Runs that are interrupted, as by Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hiar.io.states import Index, publish
from hiar.training import checkpoint


def interrupt(run: Callable[[], None], step: int) -> None:
    """Press Ctrl-C in a run when its state after ``step`` steps has been published, before older states are deleted.

    Fails if that state is never written.
    """

    def publish_and_press(folder: Path, index: Index) -> None:
        publish(folder, index)
        if index.step == step:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(checkpoint, "publish", publish_and_press)
            run()
    finally:
        signal.signal(signal.SIGINT, before)
