"""SIGTERM of a launcher: it is passed on, and the launcher ends last."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from hiar.io.ranks import launch

ENDED = 128 + signal.SIGTERM
RANK = """
import os, pathlib, signal, sys, time

folder, end = pathlib.Path(sys.argv[1]), sys.argv[2]

def save(number, frame):
    time.sleep(0.3 * int(os.environ["RANK"]))
    (folder / f"saved-{os.environ['RANK']}").touch()
    sys.exit(int(end))

if end != "deaf":
    signal.signal(signal.SIGTERM, save)
(folder / f"ready-{os.environ['RANK']}").touch()
time.sleep(600)
"""


def terminate_when_ready(folder: Path) -> None:
    while len([*folder.glob("ready-*")]) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("end", [str(ENDED), "deaf", "0"])
def test_sigterm_is_passed_on_and_all_are_waited_for(end: str, tmp_path: Path) -> None:
    """Those that end otherwise than by it had come to their end: then nothing is told."""
    thread = threading.Thread(target=terminate_when_ready, args=(tmp_path,))
    thread.start()
    command = [sys.executable, "-c", RANK, str(tmp_path), end]
    try:
        if end == "0":
            launch(command, ["one", "two"], teller=0, threads=1)
        else:
            with pytest.raises(SystemExit) as raised:
                launch(command, ["one", "two"], teller=0, threads=1)
            assert raised.value.code == ENDED
    finally:
        thread.join()
    assert len([*tmp_path.glob("saved-*")]) == (0 if end == "deaf" else 2)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
