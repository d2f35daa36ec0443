"""An experiment in DVC: its stages, which of them are stale and why, and how to reproduce one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.needed import recorded
from flows.processes import ProcessGroups, shell_code, stage_environment
from flows.remote import Remote
from hiar.errors import InUse, UserError
from hiar.storage.runs import stages_of
from hiar.storage.store import cache_of

BUSY_SECONDS = 5.0  # between attempts at a stage that another process is using
# What DVC prints then, and a stage while an earlier one, which has outlived its DVC to save a state, still writes.
BUSY = ("is busy, it is being blocked by", ": another process is writing it; ")
# Hints that DVC prints after each stage; of no use in a run's log.
HINTS = (
    "Generating lock file",
    "Updating lock file",
    "To track the changes with git, run:",
    "\tgit add",
    "To enable auto staging, run:",
    "\tdvc config core.autostage",
    "Use `dvc push`",
)
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}  # errors that no retry mends
SHOWN = 3  # names of files listed in a reason
_asking = threading.Lock()  # DVC's lock on a workspace does not tell threads apart
MISTAKE = 2  # the exit code of a stage that failed by a user's mistake


@dataclass(frozen=True)
class Stage:
    """A stage to run.

    ``needs``: the stages to run before it. ``reason``: what has changed, in words. ``of_variant``: whether it is a
    variant's stage; these run side by side, with runtime.variant_threads threads.
    """

    name: str
    needs: frozenset[str]
    reason: str
    of_variant: bool


class StageFailure(Exception):
    """A stage failed; ``code`` is its exit code (128 + N when signal N ended it), the message its error in one line."""

    def __init__(self, stage: str, code: int, line: str) -> None:
        super().__init__(line)
        self.stage, self.code = stage, code


def stale_stages(workspace: Path, *, force: bool = False) -> list[Stage]:
    """The stages that DVC would run and all that depend on them, in an order in which they can run; all with ``force``.

    Stages that most others wait for come first. Raises UserError when dvc.yaml is not valid, and InUse when another
    run has the workspace.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo(os.fspath(workspace)) as repo:
            graph = repo.index.graph  # an edge leads from a stage to one that it needs
            status = {} if force else repo.status()
    except LockError as error:
        raise InUse(f"{workspace}: is in use by another run ({_one_line(error)}); wait for it or stop it") from None
    except DvcException as error:
        raise UserError(f"{workspace / 'dvc.yaml'}: {_one_line(error)}") from None
    lock = workspace / "dvc.lock"
    known = stages_of(lock.read_bytes(), lock) if lock.exists() else {}
    changed = {stage: status.get(stage.addressing) for stage in graph}
    stale = {stage for stage in graph if force or changed[stage]}
    chosen = graph.subgraph(stale.union(*(nx.ancestors(graph, stage) for stage in stale)))
    weight = {stage: len(nx.ancestors(chosen, stage)) for stage in chosen}
    ordered = nx.lexicographical_topological_sort(chosen.reverse(), key=lambda stage: (-weight[stage], stage.name))
    return [
        Stage(
            name=stage.name,
            needs=frozenset(needed.name for needed in chosen.successors(stage)),
            reason="forced" if force else _reason(changed[stage]) if stage.name in known else "never run here",
            of_variant=" --variant " in stage.cmd,
        )
        for stage in ordered
    ]


def recorded_stages(workspace: Path) -> set[str]:
    """The stages that need not be computed, since DVC's cache has their outputs for the same inputs."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with chdir(workspace), Repo() as repo:  # DVC reads its records for stages of the current folder
            return recorded(repo)
    except (DvcException, LockError):
        return set()


def is_current(workspace: Path, stage: str) -> bool:
    """Whether DVC has nothing to do for a stage; also False if DVC cannot tell, as while others write there."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with _asking, Repo(os.fspath(workspace)) as repo:
            # The name alone would mean a stage of the current folder's dvc.yaml.
            return not repo.status(targets=[f"{workspace / 'dvc.yaml'}:{stage}"])
    except (DvcException, LockError):
        return False


def reproduce(
    workspace: Path,
    stage: str,
    groups: ProcessGroups,
    on_line: Callable[[str], None],
    *,
    force: bool = False,
    remote: Remote | None = None,
    variables: Mapping[str, str] | None = None,
) -> None:
    """`dvc repro` of one stage; waits while another process uses it.

    If the ``remote`` has its outputs, they are fetched; outputs that are made here are pushed there.
    ``variables``: additions to the stage's environment, which override those of this process.

    Raises StageFailure.
    """
    while True:
        tail: deque[str] = deque(maxlen=100)
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
        if remote is not None and not remote.away:
            command = remote.command
        command += ["--force", stage] if force else [stage]

        def heard(line: str, tail: deque[str] = tail) -> None:
            if remote is not None:
                remote.hear(line)
            if line and not line.startswith(HINTS):
                tail.append(line)
                on_line(line)

        code = groups.run(command, workspace, {**stage_environment(), **(variables or {})}, heard)
        if code == 0:
            return
        if not any(words in line for line in tail for words in BUSY):
            raise _failure(workspace, stage, code, list(tail))
        on_line(f"waiting for another process to finish {stage}")
        time.sleep(BUSY_SECONDS)


def _failure(workspace: Path, stage: str, code: int, lines: list[str]) -> StageFailure:
    """The failure of a `dvc repro`, with the stage's own exit code and last line rather than DVC's."""
    own = [line for line in lines if not line.startswith("ERROR: ")]
    dvc = [line for line in lines if line.startswith("ERROR: ")]
    exits, places = re.findall(r"exited with (-?\d+)", "\n".join(dvc)), ""
    if exits:
        code, said = int(exits[-1]), own
    else:
        said = dvc or own
        numbers = {int(number) for number in re.findall(r"\[Errno (\d+)\]", "\n".join(dvc))}
        if numbers & DISK:
            code, places = MISTAKE, _places(workspace)
    code = shell_code(code)
    signal_name = _signal_name(code)
    if signal_name:
        said = [line for line in said if not _shell_s_word(line, code - 128)]
    words = said[-1].removeprefix("error: ").removeprefix("ERROR: ") if said else "no message"
    if signal_name:
        words = f"was killed by {signal_name}; its last line: {words}"
    return StageFailure(stage, code, f"{stage}: {words}{places}")


def _places(workspace: Path) -> str:
    """Where DVC writes, and how much is free there: it often names no file."""
    told = []
    for folder in (workspace, cache_of(workspace)):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        told.append(f"{folder} ({shutil.disk_usage(there).free / 1e6:.1f} MB free)")
    return f"; DVC writes to {' and '.join(told)}: free some space there, or get permission, and run again"


def _signal_name(code: int) -> str | None:
    """The name of the signal that ended a process, from its exit code as in a shell; None if no signal did."""
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return None


def _shell_s_word(line: str, ended_by: int) -> bool:
    """Whether a line is the shell's message about a signal: dash prints "Killed", bash puts its own name before it."""
    word = re.escape(signal.strsignal(ended_by) or "")
    return re.fullmatch(rf"{word}( \(core dumped\))?|\S+: (line \d+: )?\d+ +{word}\b.*", line) is not None


def _reason(changes: list[Any] | None) -> str:
    """DVC's status of a stage in words, as in "changed: params.yaml; missing: artifacts/seed-0/codec"."""
    if not changes:
        return "depends on a stage that will run"
    states: dict[str, list[str]] = {}
    for change in changes:
        if not isinstance(change, dict):
            states.setdefault("changed", []).append(str(change).removeprefix("changed "))
            continue
        for paths in change.values():
            for path, state in paths.items():
                states.setdefault(state if isinstance(state, str) else "changed", []).append(path)
    names = {"deleted": "missing", "modified": "changed"}
    return "; ".join(f"{names.get(state, state)}: {_listed(paths)}" for state, paths in states.items())


def _listed(paths: list[str]) -> str:
    """The first `SHOWN` names, and how many more there are."""
    more = len(paths) - SHOWN
    return ", ".join(paths[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
