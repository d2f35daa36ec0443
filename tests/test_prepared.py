"""Forked commands end like started ones; commands that need another environment at import are not forked."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import LATE, ROOT, environment, prepared_process
from prepared import inherited


@pytest.mark.parametrize("arguments", [["config", "show"], ["no-command"]])
def test_a_forked_command_ends_like_a_started_one(arguments: list[str], tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = [sys.executable, "-m", "hiar", *arguments]
    started = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    process, _ = prepared_process()
    assert process.run(arguments, tmp_path, environment()) == (started.returncode, started.stdout, started.stderr)
    assert started.stdout + started.stderr


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
