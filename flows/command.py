"""What `hiar run` does: see whether there is anything to do, run the flow if so, and show the comparison."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from flows.comparison import comparison_table
from flows.pipeline import StageFailure, stale_stages
from hiar.workspace import open_workspace


def run_experiment(root: Path, name: str | None, *, dry_run: bool = False, force: bool = False) -> int:
    """Bring an experiment up to date and print its comparison. Returns the exit code: 0, or that of the failed stage.

    Raises UserError for parameters that are not valid and for a workspace that is in use.
    """
    workspace = open_workspace(root, name)
    stages = stale_stages(workspace, force=force)
    if dry_run:
        for stage in stages:
            print(f"{stage.name}: {stage.reason}")
        print(f"{len(stages)} stage(s) would run")
        return 0
    if stages:
        failure = _run_flow(root, name, force)
        if failure is not None:
            print(f"error: {failure}", file=sys.stderr)
            return failure.code
    else:
        print("everything is up to date")
    reports = (workspace / "reports").relative_to(root)
    print(f"\n{comparison_table(workspace)}\n")
    print(f"Report: {reports / 'index.html'} (open it in a browser), pictures: {reports / 'contact_sheet.png'}")
    print("Every run with its parameters, curves and videos: make mlflow")
    return 0


def _run_flow(root: Path, name: str | None, force: bool) -> StageFailure | None:
    """Run the experiment flow in this process. Returns the failure of a stage, if any."""
    set_prefect_up(root)
    from flows.experiment import experiment

    # A terminal that closes and a supervisor that stops us must take the stages along, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    state = experiment(name=name, force=force, return_state=True)
    logging.getLogger("prefect").setLevel(logging.WARNING)  # its farewell would come after our last line
    if state.is_completed():
        return None
    try:
        state.result()
    except StageFailure as failure:
        return failure
    raise RuntimeError(f"the flow ended as {state}")


def set_prefect_up(root: Path) -> None:
    """Prefect's settings where the user has none: records kept in the project, nothing reported to anybody."""
    os.environ.setdefault("PREFECT_HOME", os.fspath((root / ".prefect").resolve()))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # A busy machine takes longer than the default to start the temporary server.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")


def _end(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)
