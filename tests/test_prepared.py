"""Forked commands end like started ones; commands that need another environment at import are not forked."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from commands import LATE, ROOT, environment, prepared_process, start

from tests.prepared import Forked, inherited


@pytest.mark.parametrize("arguments", [["config", "show"], ["no-command"]])
def test_a_forked_command_ends_like_a_started_one(arguments: list[str], tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = [sys.executable, "-m", "hiar", *arguments]
    started = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    with prepared_process()[0].start(arguments, tmp_path, environment(), PIPE, PIPE, session=False) as forked:
        assert forked.communicate() == (started.stdout, started.stderr)
    assert forked.returncode == started.returncode
    assert started.stdout + started.stderr


def test_a_forked_command_is_waited_for_and_killed_like_a_started_one(tmp_path: Path) -> None:
    """It ends with its own signal; its group is its own on request; its output may be a file."""
    (tmp_path / "student").mkdir()
    os.mkfifo(tmp_path / "student" / "manifest.json")  # which the command reads, and nobody writes
    arguments = ("stream", "--checkpoint", "student", "--prompt", "a red disc", "--out", "-")
    with (tmp_path / "log").open("w") as log:
        forked = start(*arguments, folder=tmp_path, stdout=log, stderr=log, session=True)
    assert isinstance(forked, Forked)
    assert forked.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        forked.wait(0.01)
    assert os.getpgid(forked.pid) == os.getsid(forked.pid) == forked.pid
    forked.kill()
    assert forked.wait() == forked.poll() == -signal.SIGKILL
    assert not Path("/proc", str(forked.pid)).exists()


def test_nothing_in_this_process_forbids_forks() -> None:
    """A variable that a library sets on import, unless commands.py names it, would slow each command by seconds."""
    now, forked = inherited(environment(), LATE), prepared_process()[1]
    assert now == forked


def test_variables_and_limits_that_libraries_read_forbid_a_fork() -> None:
    usual = inherited(environment(), LATE)
    assert inherited(environment() | {"HIAR_TRACKING": "off", "PYTEST_CURRENT_TEST": "another"}, LATE) == usual
    assert inherited(environment() | {"OMP_NUM_THREADS": "7"}, LATE) != usual
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 50, limits[1]))
    try:
        assert inherited(environment(), LATE) != usual
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
