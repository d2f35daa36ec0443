"""`hiar run`: find out whether there is anything to do, run the flow if so, and show the comparison."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from flows.comparison import beside_tables, comparison_table
from flows.pipeline import recorded_stages, stale_stages
from flows.processes import ProcessGroups, shell_code
from flows.remote import remote_of
from flows.storing import store_and_register
from hiar.errors import UserError
from hiar.io.files import write_text
from hiar.io.loopback import past_proxies
from hiar.parameters import load_params
from hiar.tracking.figures import record_figures
from hiar.tracking.identity import project_of
from hiar.tracking.spool import drain, spool_folder
from hiar.workspace import experiment_params, experiments_beside, open_workspace, sole_use

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
SENDING_SECONDS = 20.0  # how long to wait until MLflow has a run's records; the sender goes on after that
STOPPING_SECONDS = 60  # how long a flow may take to stop its stages and to report to its server


def run_experiment(root: Path, name: str | None, *, dry_run: bool = False, force: bool = False) -> int:
    """Bring an experiment up to date and print its comparison. Returns the exit code: 0, or that of the failed stage.

    The experiments that it names to be run beside it follow, one after another, and then all are compared.

    Raises UserError for parameters that are not valid and for a workspace that is in use.
    """
    names = [name, *experiments_beside(root, name)]
    for one in names:
        experiment_params(root, one)
    check_code(root)
    for one in names:
        if len(names) > 1:
            print(f"\n{one}", flush=True)
        with sole_use(root, one) as held:
            code = _run_experiment(root, one, held, dry_run, force)
        if code != 0:
            return code
    if len(names) > 1 and not dry_run:
        folders = {str(one): root / "runs" / str(one) for one in names}
        path = folders[str(name)] / "reports" / "beside.md"
        write_text(path, beside_tables(folders) + "\n")
        print(f"\n{path.read_text(encoding='utf-8')}\nThis comparison: {path.relative_to(root)}")
    return 0


def check_code(root: Path) -> None:
    """Raise UserError if the project's code differs from the code that runs: DVC would record one and run the other.

    This happens when a project is copied with its .venv, whose programs run the code they were installed from.
    """
    here, own = Path(__file__).resolve().parents[1], root.resolve()
    if here == own or not (own / "hiar" / "__init__.py").exists():
        return
    for package in ("hiar", "flows"):
        codes = [
            {path.relative_to(folder): path.read_bytes() for path in (folder / package).rglob("*.py")}
            for folder in (here, own)
        ]
        if codes[0] != codes[1]:
            raise UserError(
                f"{own / package}: differs from {here / package}, whose code this `hiar` runs; install the project "
                "here (rm -r .venv if it was copied, then make setup) and use .venv/bin/hiar"
            )


def _run_experiment(root: Path, name: str | None, held: int | None, dry_run: bool, force: bool) -> int:
    workspace = open_workspace(root, name)
    stages = stale_stages(workspace, force=force)
    if dry_run:
        kept = set() if force or not stages else recorded_stages(workspace)
        for stage in stages:
            print(f"{stage.name}: {stage.reason}" + "; made before, restored from DVC's cache" * (stage.name in kept))
        there = sum(stage.name in kept for stage in stages)
        print(f"{len(stages)} stage(s) would run" + f", {there} of them from DVC's cache" * (there > 0))
        return 0
    if stages:
        code = _run_flow(root, name, force, held)
        _pass_on_records(workspace, code == 0)
        if code != 0:
            return code
    else:
        print("everything is up to date")
        if remote := remote_of(workspace):
            store_and_register(remote, ProcessGroups(), print)
    reports = (workspace / "reports").relative_to(root)
    print(f"\n{comparison_table(workspace)}\n")
    print(f"Report: {reports / 'index.html'} (open it in a browser), pictures: {reports / 'contact_sheet.png'}")
    print("Every run with its parameters, curves and videos: make mlflow")
    return 0


def _pass_on_records(workspace: Path, complete: bool) -> None:
    """Wait up to `SENDING_SECONDS` until MLflow has the records, also those of scores from DVC's cache."""
    if os.environ.get("HIAR_TRACKING") == "off":
        return
    if complete:
        from hiar.stages.comparison import read_summary  # loads torch

        params = load_params(workspace / "params.yaml")
        record_figures(params, workspace, read_summary(params, workspace))
    drain(spool_folder(project_of(workspace)), SENDING_SECONDS)


def _run_flow(root: Path, name: str | None, force: bool, held: int | None) -> int:
    """Run the flow in its own process (flows/__main__.py) and return its exit code.

    Prefect's temporary server is that process's child. In the terminal's process group Ctrl-C would end the server too,
    and the flow could not report to it how it ended; in its own session it gets signals only from here.
    ``held``: the descriptor of the workspace's lock, which the flow holds too until it has ended.
    """
    options = [*(["--force"] if force else []), "--", *([] if name is None else [name])]
    files = () if held is None else (held,)
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows", *options],
        cwd=root,
        env=flow_environment(root),
        start_new_session=True,
        pass_fds=files,
    )

    def pass_on(number: int, _frame: object) -> None:
        flow.send_signal(number)
        signal.alarm(STOPPING_SECONDS)

    def kill(_number: int, _frame: object) -> None:
        os.killpg(flow.pid, signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGALRM, kill)
    return shell_code(flow.wait())


def flow_environment(root: Path) -> dict[str, str]:
    """The environment of a flow.

    Unless the user has settings of Prefect, its records are kept in the project and no analytics are sent.
    """
    database = {} if "PREFECT_HOME" in os.environ else {DATABASE: "sqlite+aiosqlite:///.prefect/prefect.db"}
    settings = {
        # Relative to the project's folder, in which the flow runs: an absolute path with a ? would be cut there.
        **database,
        "PREFECT_HOME": os.fspath((root / ".prefect").resolve()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # A busy machine takes longer than the default to start the temporary server.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    }
    return {**settings, **os.environ, **past_proxies(os.environ)}
