"""What tracking costs a stage's process, with MLflow up or down: ``python -m benchmarks.tracking --help``.

Each measurement is a separate process that records a training of 600 steps, four metrics each, a file and a tag. For
comparison, others do the same through MLflow's own client: the import, a run with its parameters, batches. The
sender's work, in its own process at the lowest priority, is not in these figures.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.command import Parser, check_out
from hiar.errors import UserError
from hiar.io.artifacts import code_version
from hiar.io.files import write_json
from hiar.io.hardware import hardware
from hiar.io.progress import Progress
from hiar.tracking.spool import take_lock

ROOT = Path(__file__).parents[1]
SPOOLED = """
from hiar.tracking.stage import tracked
with tracked("distill", 0, "hiar", params, Path("project"), "work") as run:
    for step in range(600):
        run.log(step, dict.fromkeys(names, step / 600))
    run.artifact(Path("project/video"))
    run.tag("content", "abc")
"""
DIRECT = """
import os
from mlflow.tracking import MlflowClient
from mlflow.entities import Metric, Param
from hiar.tracking.identity import describe, identity_of
described = describe(identity_of("distill", 0, "hiar"), params, Path("project"))
client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///project/mlflow.db"))
found = client.get_experiment_by_name("direct")
experiment = found.experiment_id if found else client.create_experiment("direct", os.environ.get("DIRECT_ARTIFACTS"))
run = client.create_run(experiment, tags=described["tags"]).info.run_id
given = [Param(*pair) for pair in described["params"].items()]
for first in range(0, len(given), 100):
    client.log_batch(run, params=given[first : first + 100])
points = [Metric(name, step / 600, 1, step) for step in range(600) for name in names]
for first in range(0, len(points), 1000):
    client.log_batch(run, metrics=points[first : first + 1000])
client.log_artifact(run, "project/video")
client.set_tag(run, "content", "abc")
client.set_terminated(run)
"""
STAGE = """
import json, sys, time
from pathlib import Path
from hiar.parameters import load_params
params, names = load_params(Path(sys.argv[1])), ("dmd", "critic", "student_grad_norm", "critic_grad_norm")
import hiar.io.artifacts  # as every stage has
wall, cpu = time.perf_counter(), time.process_time()
{body}
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


def bench(rounds: int) -> dict[str, Any]:
    """The contents of the result file; the ratio is of wall-clock seconds, taken within each round."""
    with TemporaryDirectory() as scratch, _server(Path(scratch)) as up, socket.socket() as down:
        down.bind(("127.0.0.1", 0))  # reserved, but not listened on
        uris = {"up": up, "down": f"http://127.0.0.1:{down.getsockname()[1]}"}
        cases = {
            "direct, database": (DIRECT, None),
            "direct, server up": (DIRECT, uris["up"]),
            "spool, database": (SPOOLED, None),
            "spool, server up": (SPOOLED, uris["up"]),
            "spool, server down": (SPOOLED, uris["down"]),
        }
        project = Path(scratch, "project")
        (project / "hiar").mkdir(parents=True)
        (project / "video").write_bytes(bytes(100_000))
        seconds: dict[str, list[list[float]]] = {name: [] for name in cases}
        _stage(DIRECT, scratch, None)  # creates the database's tables
        with Progress("tracking", rounds) as progress:
            for number in range(rounds):
                for name, (body, uri) in sorted(cases.items(), reverse=bool(number % 2)):
                    seconds[name].append(_stage(body, scratch, uri))
                    _dismiss_senders(project)
                progress.advance()
    walls = {name: [wall for wall, _ in found] for name, found in seconds.items()}
    ratio = [direct / own for direct, own in zip(walls["direct, database"], walls["spool, database"], strict=True)]
    return {
        "rounds": rounds,
        "seconds": {name: _spread(found) for name, found in walls.items()},
        "processor_seconds": {name: _spread([cpu for _, cpu in found]) for name, found in seconds.items()},
        "direct_over_spool": _spread(ratio),
        "hardware": hardware("cpu"),
        "code": code_version(),
    }


def _stage(body: str, folder: str, uri: str | None) -> list[float]:
    """Wall-clock and CPU seconds that ``body`` takes in a new process."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HIAR_"))}
    own |= {"PYTHONPATH": os.fspath(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    own |= {"DIRECT_ARTIFACTS": Path(folder, "files").as_uri()} if uri is None else {"MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-c", STAGE.format(body=body), os.fspath(ROOT / "params.yaml")]
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=True)
    measured: list[float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _dismiss_senders(project: Path) -> None:
    """End all senders, so that none works while the next case is measured: a sender ends when its folder is gone."""
    for folder in (project / ".hiar" / "spool").glob("*"):
        held = folder.rename(project / "gone")
        while (lock := take_lock(held)) is None:
            time.sleep(0.05)
        lock.close()
        shutil.rmtree(held)


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """Run an MLflow server of this process's own; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "served")]
    settings = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, env=settings, cwd=folder, start_new_session=True, stdout=quiet, stderr=quiet)
    try:
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = min(values), statistics.median(values), max(values)
    return {name: float(f"{value:.4g}") for name, value in (("median", middle), ("lowest", low), ("highest", high))}


def main(line: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, required=True, help="NAME.json")
    try:
        options = parser.parse_args(line)
        check_out(options.out)
        if options.rounds < 1:
            raise UserError(f"--rounds = {options.rounds}: should be at least 1")
        result = bench(options.rounds)
        write_json(options.out, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, found in result["seconds"].items():
        print(f"{name}: {found['median']:.2f} s ({found['lowest']:.2f} to {found['highest']:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
