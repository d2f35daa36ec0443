"""The command line, run as a user runs it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

from tests.prepared import Prepared, inherited

ROOT = Path(__file__).parents[1]
# Prefixes of variables that a developer's shell may set and tests must not depend on.
FOREIGN = ("HIAR_", "MLFLOW_", "PREFECT_")
# Prefixes of variables that no library of prepared.py reads on import: a forked command may change them. Processes that
# meet (MASTER_ADDR) are not forked, because torch would already have read which of its messages to print.
LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMPI_", "PMI_", "MV2_")
LATE = (*FOREIGN, *LAUNCHERS, "VBENCH_")
# Prefixes of variables that libraries set in pytest's process on import; a command gets the values from before.
BY_LIBRARIES = ("LD_LIBRARY_PATH", "TORCH_CPP_LOG_LEVEL", "_TORCHINDUCTOR_", "TORCHINDUCTOR_", "_MLFLOW_")
STARTED_WITH = {name: value for name, value in os.environ.items() if name.startswith(BY_LIBRARIES)}


def environment() -> dict[str, str]:
    """The environment of a command; it imports this project's code from any folder, so that coverage counts it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith((*FOREIGN, *BY_LIBRARIES))}
    project = {"PYTHONPATH": os.fspath(ROOT), "PYTHONSAFEPATH": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return kept | STARTED_WITH | project


def hiar(*arguments: object, folder: Path, code: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `hiar` in a folder and expect an exit code; ``settings`` are environment variables."""
    with start(*arguments, folder=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings) as process:
        out, err = process.communicate()
    run = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    assert run.returncode == code, f"exit code {run.returncode}\n{run.stdout}\n{run.stderr}"
    return run


def start(
    *arguments: object,
    folder: Path,
    stdout: int | IO[str] = subprocess.DEVNULL,
    stderr: int | IO[str] = subprocess.DEVNULL,
    session: bool = False,
    **settings: str,
) -> subprocess.Popen[str]:
    """Start `hiar` in a folder, like `subprocess.Popen`; ``settings`` are environment variables.

    The process is forked from one that has already imported the libraries, where that makes no difference.
    session: in a session of its own.
    """
    words, variables = [str(argument) for argument in arguments], environment() | settings
    prepared, usual = prepared_process()
    if inherited(variables, LATE) == usual:
        with open(os.devnull, "w") as null:
            outputs = [null if output == subprocess.DEVNULL else output for output in (stdout, stderr)]
            return prepared.start(words, folder, variables, *outputs, session=session)
    command = [sys.executable, "-m", "hiar", *words]
    options = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr, "start_new_session": session}
    return subprocess.Popen(command, cwd=folder, env=variables, text=True, **options)  # type: ignore[call-overload]


USUAL = environment()  # while tests are collected, before any of them sets a variable


@functools.cache
def prepared_process() -> tuple[Prepared, object]:
    """The process that commands are forked from, and the environment and limits that it inherited."""
    return Prepared(USUAL), inherited(USUAL, LATE)


def copy_artifacts(source: Path, to: Path) -> None:
    """Copy a folder of artifacts that a test will change: files linked to DVC's cache are read-only."""
    shutil.copytree(source, to, copy_function=shutil.copyfile)
