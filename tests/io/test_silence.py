"""A process whose GPU waits for another one in vain reports it and ends. Here its main thread sleeps instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import environment

from hiar.errors import ERROR_FILE, LOST
from hiar.io.silence import found_by, heard

WAITING = """
import sys, time
from types import SimpleNamespace
from hiar.io import silence

silence.POLL = 0.05
answers = iter(["SUCCESS", "SUCCESS", "TIMEOUT"])
with silence.heard(lambda: SimpleNamespace(name=next(answers)), lambda found: f"lost another one ({found})"):
    time.sleep(600)
"""


@pytest.mark.parametrize("channel", ["to the launcher", "on the standard error"])
def test_a_process_that_waits_in_vain_says_so_in_one_line_and_exits_as_lost(channel: str, tmp_path: Path) -> None:
    own = environment() | ({ERROR_FILE: os.fspath(tmp_path / "error")} if channel == "to the launcher" else {})
    done = subprocess.run([sys.executable, "-c", WAITING], env=own, capture_output=True, text=True, timeout=300)
    assert done.returncode == LOST
    line = "lost another one (NCCL: TIMEOUT)"
    if channel == "to the launcher":
        assert ((tmp_path / "error").read_text(), done.stderr) == (line, "")
    else:
        assert done.stderr == f"error: {line}\n"


def test_a_failure_found_after_the_body_is_ignored() -> None:
    """As when communicators are destroyed. Errors of the body are raised unchanged."""

    def broken() -> None:
        raise AssertionError("asked after the end")

    with pytest.raises(ValueError, match="its own"), heard(broken, str):
        raise ValueError("its own")
    with heard(broken, str):
        pass


def test_on_a_cpu_nothing_is_polled() -> None:
    assert found_by(torch.device("cpu")) is None
    with heard(None, str):
        pass
