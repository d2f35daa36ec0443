"""A launcher passes SIGTERM on and ends last; if a rank ends by itself, it reports the cause and ends the others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from commands import environment
from waiting import wait_until

from hiar.errors import LOST, RunFailed, UserError
from hiar.io import ranks
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
    """Ranks that end with 0 had finished already: then nothing is raised."""
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


REPORTS = """
import os, pathlib, sys, time

rank = int(os.environ["RANK"])
other, (code, _, words) = pathlib.Path("second"), sys.argv[1 + rank].partition(":")
if rank == 0:
    while not other.exists():
        time.sleep(0.01)
else:
    pathlib.Path("threads").write_text(os.environ["OMP_NUM_THREADS"])
    other.touch()
    time.sleep(0.3)
if words:
    pathlib.Path(os.environ["HIAR_ERROR_FILE"]).write_text(words)
print("seen of", rank, file=sys.stderr, flush=True)
print("last of", rank)
sys.exit(int(code))
"""


@pytest.mark.parametrize(
    ("said", "teller", "error", "line"),
    [
        ((f"{LOST}:lost another", "2:params.yaml: is wrong"), 0, UserError, "params.yaml: is wrong"),
        ((f"{LOST}:lost another", "1:disk: is full"), 1, RunFailed, "disk: is full"),
        (("0:", "7:"), 0, RunFailed, "two ended with exit code 7: last of 1"),
        ((f"{LOST}:lost another", "0:"), 1, RunFailed, "lost another"),
    ],
)
def test_the_cause_is_reported_even_if_another_rank_ends_first(
    said: tuple[str, str],
    teller: int,
    error: type[Exception],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In the rank's own words, if it left any. Only the teller's standard error is shown."""
    monkeypatch.setattr(ranks, "SETTLE", 60.0)  # long enough for a busy machine
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with pytest.raises(error, match=f"^{re.escape(line)}$"):
        launch([sys.executable, "-c", REPORTS, *said], ["one", "two"], teller=teller, threads=3)
    assert capfd.readouterr().err == f"seen of {teller}\n"
    assert Path("threads").read_text() == "5"  # as set by the user


WITH_CHILD = """
import os, pathlib, subprocess, sys, time

if os.environ["RANK"] == "0":
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path("child").write_text(str(child.pid))
    time.sleep(600)
while not pathlib.Path("child").exists():
    time.sleep(0.01)
print("threads", os.environ["OMP_NUM_THREADS"])
sys.exit(1)
"""


def test_children_of_a_rank_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SETTLE", 0.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(RunFailed, match=r"^two ended with exit code 1: threads 3$"):
        launch([sys.executable, "-c", WITH_CHILD], ["one", "two"], teller=0, threads=3)
    child = int(Path("child").read_text())
    wait_until(lambda: not is_alive(child))


ORPHAN = """
import os, pathlib, sys, time
from hiar.io.ranks import launch, launched

if "RANK" not in os.environ:
    launch([sys.executable, *sys.argv], ["one", "two"], teller=0, threads=1)
launched()
pathlib.Path("started-" + os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""


def test_ranks_do_not_outlive_a_launcher_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    launcher = subprocess.Popen([sys.executable, "orphan.py"], cwd=tmp_path, env=environment())
    started = [tmp_path / f"started-{rank}" for rank in range(2)]
    try:
        wait_until(lambda: all(path.exists() and path.read_text() for path in started))
    finally:
        launcher.kill()
        launcher.wait()
    wait_until(lambda: not any(is_alive(int(path.read_text())) for path in started))


def is_alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
