"""MLflow: one run a stage, under one parent run per experiment and parameters. Its absence costs a line, never the run.

Without MLFLOW_TRACKING_URI, runs go to ``mlflow.db`` and ``mlruns/`` of the project. HIAR_TRACKING=off turns tracking
off without importing MLflow, and HIAR_EXPERIMENT names the experiment otherwise than its workspace does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from hiar.config import Params
from hiar.io.artifacts import code_version
from hiar.io.hardware import hardware
from hiar.io.loopback import past_proxies
from hiar.io.records import artifacts_uri, follow_project, records_uri

FLUSH_SECONDS = 5.0
SYSTEM_SECONDS = 5.0  # between samples of processor, memory, disk, network and GPUs
TIMEOUT_SECONDS = 3  # of a request; MLflow's own wait for a dead server is minutes
METRICS_BATCH, PARAMS_BATCH = 1000, 100  # what MLflow takes in one request
# Taken where the user has set nothing else.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it may hold a password
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(TIMEOUT_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


class Run:
    """The run of a stage. When tracking is off, and after its first failure, the methods do nothing."""

    def __init__(self) -> None:
        self._client: Any = None  # MLflow's, while it works
        self._id = ""
        self._metrics: list[tuple[str, float, int, int]] = []  # name, value, milliseconds, step
        self._flushed = time.monotonic()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; they are sent in batches, every few seconds and at the end."""
        if self._client is None:
            return
        now = round(time.time() * 1000)
        self._metrics += [(name, float(value), now, step) for name, value in metrics.items()]
        if len(self._metrics) >= METRICS_BATCH or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._attempt(self._flush)

    def artifact(self, path: Path) -> None:
        """Keep a copy of a small file: a video, a picture, metrics. Checkpoints are DVC's: tag their hash."""
        self._attempt(lambda: self._client.log_artifact(self._id, str(path)))

    def tag(self, key: str, value: str) -> None:
        """Note a fact, such as the hash of an artifact."""
        self._attempt(lambda: self._client.set_tag(self._id, key, value))

    def _flush(self) -> None:
        from mlflow.entities import Metric

        for first in range(0, len(self._metrics), METRICS_BATCH):
            batch = [Metric(*metric) for metric in self._metrics[first : first + METRICS_BATCH]]
            self._client.log_batch(self._id, metrics=batch)
        self._metrics.clear()
        self._flushed = time.monotonic()

    def _attempt(self, action: Callable[[], object]) -> None:
        """Do it while tracking works; say so once when it fails."""
        if self._client is None:
            return
        try:
            action()
        except Exception as error:  # whatever MLflow, the network or the database may throw
            self._client = None
            _warn(error)


@contextmanager
def tracked(stage: str, seed: int | None, variant: str | None, params: Params, workspace: Path) -> Iterator[Run]:
    """Record the body as the run of a stage; it ends as FINISHED, FAILED (an exception) or KILLED (an interrupt).

    Runs that a killed process left as RUNNING are marked as KILLED when the same stage starts again.
    """
    run = Run()
    finish: list[Callable[[str], object]] = []
    if os.environ.get("HIAR_TRACKING") != "off":
        try:
            finish = _begin(
                run, {"stage": stage, "seed": _or_dash(seed), "variant": _or_dash(variant)}, params, workspace
            )
        except Exception as error:  # as in Run._attempt
            _warn(error)
    status = "KILLED"
    try:
        yield run
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        for action in finish:
            run._attempt(lambda action=action: action(status))  # type: ignore[misc]


def _begin(run: Run, identity: dict[str, str], params: Params, workspace: Path) -> list[Callable[[str], object]]:
    """Open the run of a stage and give ``run`` its connection. Returns what ends it, to be called with its status."""
    os.environ.update(past_proxies(os.environ))
    project = (workspace / "hiar").resolve().parent  # a workspace links to the code of its project
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or records_uri(project)
    _knock(uri)
    with _lock(project / "mlflow.db.lock"):  # variants start at the same moment, maybe with making the tables
        if not given:
            follow_project(project)
        client = _connect(uri)
        experiment = _experiment(client, project, workspace)
        parent = _parent(client, experiment, params)
        _bury(client, experiment, parent, identity)
    tags = {
        **identity,
        "mlflow.parentRunId": parent,
        "commit": _commit(),
        "hardware": hardware(params.runtime.device),
        "process": _process(),
    }
    child = client.create_run(experiment, tags=tags, run_name=" ".join(identity.values())).info.run_id
    _log_params(client, child, params)
    monitor = _monitor(child, uri)
    run._client, run._id = client, child
    return [
        lambda _: run._flush(),
        lambda _: monitor.finish(),
        lambda status: client.set_terminated(child, status),
        lambda status: client.set_terminated(parent, status),
    ]


def _connect(uri: str) -> Any:
    """MLflow's client, set to give up soon and to print nothing: what goes wrong is told once, by us."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def _knock(uri: str) -> None:
    """Raise OSError when nobody listens at an HTTP address: much sooner than an import of MLflow would tell."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or address.hostname is None:
        return
    if address.scheme in getproxies() and not proxy_bypass(address.hostname):
        return
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    socket.create_connection((address.hostname, port), timeout=TIMEOUT_SECONDS).close()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _experiment(client: Any, project: Path, workspace: Path) -> str:
    """The id of MLflow's experiment of that name, made when missing."""
    default = "default" if workspace.resolve() == project else workspace.resolve().name
    name = f"hiar/{os.environ.get('HIAR_EXPERIMENT') or default}"
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    beside = None if os.environ.get("MLFLOW_TRACKING_URI") else artifacts_uri(project)
    return str(client.create_experiment(name, artifact_location=beside))


def _parent(client: Any, experiment: str, params: Params) -> str:
    """The id of the run of these parameters, made when missing; it is open while its stages run."""
    digest = hashlib.sha256(json.dumps(params.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
    query = f"tags.`hiar.params` = '{digest}'"
    for found in client.search_runs([experiment], query, order_by=["attributes.start_time ASC"], max_results=1):
        client.update_run(found.info.run_id, status="RUNNING")
        return str(found.info.run_id)
    tags = {"hiar.params": digest, "commit": _commit()}
    parent = str(client.create_run(experiment, tags=tags, run_name=f"parameters {digest[:8]}").info.run_id)
    _log_params(client, parent, params)
    return parent


def _bury(client: Any, experiment: str, parent: str, identity: dict[str, str]) -> None:
    """Mark the runs that killed processes left open."""
    tags = {**identity, "mlflow.parentRunId": parent}
    query = " and ".join(
        ["attributes.status = 'RUNNING'", *(f"tags.`{key}` = '{value}'" for key, value in tags.items())]
    )
    for left in client.search_runs([experiment], query):
        if not _is_alive(left.data.tags.get("process", "")):
            client.set_terminated(left.info.run_id, "KILLED")


def _log_params(client: Any, run_id: str, params: Params) -> None:
    from mlflow.entities import Param

    flat = [Param(name, value) for name, value in _flat("", params.model_dump(mode="json"))]
    for first in range(0, len(flat), PARAMS_BATCH):
        client.log_batch(run_id, params=flat[first : first + PARAMS_BATCH])


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """``{"a": {"b": [1]}}`` as ``("a.b", "[1]")``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _monitor(run_id: str, uri: str) -> Any:
    """MLflow's own thread that records the machine's load, started."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run_id, sampling_interval=SYSTEM_SECONDS, tracking_uri=uri)
    monitor.start()
    return monitor


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _commit() -> str:
    code = code_version()
    return f"{code['commit']} with changes" if code["dirty"] else str(code["commit"])


def _process() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _is_alive(process: str) -> bool:
    """Whether a process named as ``_process`` does is there; of another machine's nobody here can tell, so it is."""
    host, _, pid = process.partition(" ")
    return host != socket.gethostname() or Path("/proc", pid).exists()


def _warn(error: Exception) -> None:
    """One line on the standard error, without what a URI may hold of names and passwords."""
    reason = re.sub(r"//[^/@\s]*@", "//", " ".join(f"{type(error).__name__}: {error}".split()))
    print(f"warning: MLflow does not record this run ({reason[:200]}); it goes on without", file=sys.stderr)
