"""Our operations on MLflow, all idempotent: repeated, or done by two machines, they have the effect of one."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from hiar.io.loopback import past_proxies
from hiar.tracking.records import VIEW, artifacts_uri

TIMEOUT_SECONDS = 3  # per request; by default MLflow waits minutes for a dead server
UPLOAD_SECONDS = 300  # for a file, which MLflow's server passes on to its store before it answers
TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
METRICS_BATCH, PARAMS_BATCH = 1000, 100  # MLflow's limits per request
PAGE = 1000  # runs per request
SILENT_SECONDS = 600  # without a heartbeat, after which a run counts as dead, on whatever machine
# Columns of the list of runs; MLflow omits those that no run has, as not every world has every metric.
COLUMNS = ("tags.`experiment`", "tags.`method`", "tags.`order`", "tags.`context`", "tags.`seed`")
FIGURES = ("metrics.`good`", "metrics.`residual`", "metrics.`saturation_drift`", "metrics.`border_jump`")
# Errors that no retry mends, such as a run that somebody has deleted: the event is skipped and logged.
FOR_GOOD = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "BAD_REQUEST")
# Defaults, unless the user has set these variables.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it may hold a password
    TIMEOUT: str(TIMEOUT_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


def knock(uri: str) -> None:
    """Raise OSError if nothing listens at an HTTP address, before MLflow is imported, which is slow."""
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or address.hostname is None:
        return
    if address.scheme in getproxies() and not proxy_bypass(address.hostname):
        return
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    socket.create_connection((address.hostname, port), timeout=TIMEOUT_SECONDS).close()


def connect(uri: str) -> Any:
    """MLflow's client, with short timeouts and without output, as we report failures once ourselves."""
    os.environ.update(past_proxies(os.environ))
    knock(uri)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def open_experiment(client: Any, project: Path, name: str) -> str:
    """The id of MLflow's experiment ``name``, created if missing, with our view of its runs."""
    view = {
        "searchFilter": "tags.kind = 'contender'",
        "orderByKey": FIGURES[0],
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": [*COLUMNS, *FIGURES],
        "compareRunsMode": "TABLE",
    }
    tags = {f"mlflow.sharedViewState.{VIEW}": json.dumps(view)}
    found = client.get_experiment_by_name(name)
    if found is None:
        beside = None if os.environ.get("MLFLOW_TRACKING_URI") else artifacts_uri(project)
        try:
            return str(client.create_experiment(name, artifact_location=beside, tags=tags))
        except Exception:  # another machine was faster, or MLflow is away
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    for key, value in tags.items():
        if found.tags.get(key) != value:
            client.set_experiment_tag(found.experiment_id, key, value)
    return str(found.experiment_id)


def open_parent(client: Any, experiment: str, run: Mapping[str, Any]) -> str:
    """The id of the parent run for an experiment and its parameters, created if missing; open while its stages run."""
    tags = {"hiar.params": run["digest"], "experiment": run["experiment"], "kind": "experiment"}
    name = f"{run['experiment']} {run['digest'][:8]}"
    return _open(client, experiment, tags, {"commit": run["tags"]["commit"]}, name, run["params"])[0]


def open_run(client: Any, experiment: str, parent: str, run: Mapping[str, Any]) -> tuple[str, bool]:
    """The id of the run that a spool file's first event describes, and whether it existed already."""
    if run["identity"]["seed"] is None:
        return parent, True
    keys = {name: str(value) for name, value in run["identity"].items() if value is not None}
    keys = {"method" if name == "variant" else name: value for name, value in keys.items()}
    tags = {**keys, "kind": run["tags"]["kind"], "mlflow.parentRunId": parent}
    work = run["work"]
    for other in [] if work is None else _find(client, experiment, tags):
        if other.data.tags.get("work", work) != work:
            client.set_tag(other.info.run_id, "kind", "superseded")
    facts = {**run["tags"], **({} if work is None else {"work": work})}
    params = {**run["params"], **run["own"]}
    run_id, was_there = _open(client, experiment, tags, facts, run["name"], params, run["began"])
    if was_there:
        known = client.get_run(run_id).data.tags
        for key, value in facts.items():
            if known.get(key) != value and (work is not None or key not in known):
                client.set_tag(run_id, key, value)
    return run_id, was_there


def _open(
    client: Any,
    experiment: str,
    tags: Mapping[str, str],
    facts: Mapping[str, str],
    name: str,
    params: Mapping[str, str],
    began: int | None = None,
) -> tuple[str, bool]:
    """The id of the run with these ``tags``, now RUNNING, and whether it existed already."""
    if found := _find(client, experiment, tags):
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, status="RUNNING")
        if len(found[0].data.params) < len(params):  # its creator died before logging them all
            _log_params(client, run_id, params)
        return run_id, True
    tags_of_run = {**facts, **tags}
    made = str(client.create_run(experiment, start_time=began, tags=tags_of_run, run_name=name).info.run_id)
    first = str(_find(client, experiment, tags)[0].info.run_id)
    if first != made:  # another machine created it at the same moment
        client.delete_run(made)
        return first, True
    _log_params(client, made, params)
    return made, False


def _find(client: Any, experiment: str, tags: Mapping[str, str]) -> list[Any]:
    """The runs that have these tags, oldest first."""
    query = " and ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items())
    return list(client.search_runs([experiment], query, order_by=["attributes.start_time ASC"], max_results=PAGE))


def _quoted(value: str) -> str:
    """A text in a query of MLflow: an experiment's name may have a quotation mark of one kind."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def _log_params(client: Any, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    flat = [Param(name, value) for name, value in params.items()]
    for first in range(0, len(flat), PARAMS_BATCH):
        client.log_batch(run_id, params=flat[first : first + PARAMS_BATCH])


def log_points(client: Any, run_id: str, points: Iterable[tuple[str, float, int, int]]) -> None:
    """Log points, each a name, a value, a time in milliseconds and a step. MLflow stores equal ones once."""
    from mlflow.entities import Metric

    metrics = [Metric(*point) for point in points]
    for first in range(0, len(metrics), METRICS_BATCH):
        client.log_batch(run_id, metrics=metrics[first : first + METRICS_BATCH])


def log_file(client: Any, run_id: str, path: Path) -> None:
    """Log a file with a run; the server may take `UPLOAD_SECONDS` for it, unless the user allows it more."""
    usual = os.environ.get(TIMEOUT)
    os.environ[TIMEOUT] = str(max(UPLOAD_SECONDS, int(usual or 0)))
    try:
        client.log_artifact(run_id, str(path))
    finally:
        if usual is None:
            del os.environ[TIMEOUT]
        else:
            os.environ[TIMEOUT] = usual


def history(client: Any, run_id: str, name: str) -> dict[int, float]:
    """The newest value of a metric at each step."""
    points = sorted(client.get_metric_history(run_id, name), key=lambda point: point.timestamp)
    return {point.step: point.value for point in points}


def link_to_maker(client: Any, experiment: str, run_id: str, content: str) -> None:
    """Tag a run whose model another run trained, as when it came from DVC's cache, with a link to that run."""
    if "work" in client.get_run(run_id).data.tags:
        return
    makers = [one for one in _find(client, experiment, {"content": content}) if "work" in one.data.tags]
    if makers:
        maker = makers[-1].info
        client.set_tag(run_id, "trained by", maker.run_id)
        link = f"Its model was trained by [{maker.run_name}](#/experiments/{experiment}/runs/{maker.run_id})."
        client.set_tag(run_id, "mlflow.note.content", link)


def register(client: Any, run_id: str, run: Mapping[str, Any], source: str, aliases: Iterable[str]) -> None:
    """Register a run's trained model, stored at ``source``, as a version unless it is one, and give it ``aliases``."""
    from mlflow.exceptions import MlflowException

    name = f"{run['experiment']} {run['identity']['variant']}".replace(":", "-")  # which the registry refuses
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [one for one in client.search_model_versions(f"name = {_quoted(name)}") if one.source == source]
    tags = {**run["tags"], "params": run["digest"]}
    version = known[0] if known else client.create_model_version(name, source, run_id, tags)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version.version)


def beat(client: Any, run_id: str, parent: str) -> None:
    """Write the heartbeat of a run, and reopen it and its parent in case they were closed as dead."""
    client.set_tag(run_id, "heartbeat", datetime.now(UTC).isoformat(timespec="seconds"))
    for open_one in {run_id, parent}:
        client.update_run(open_one, status="RUNNING")


def close_silent(client: Any, experiment: str) -> None:
    """Mark runs without a heartbeat for `SILENT_SECONDS` as KILLED, and settle their parents."""
    parents = set()
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=PAGE):
        tags, run_id = run.data.tags, run.info.run_id
        said = tags.get("heartbeat")
        since = datetime.fromisoformat(said).timestamp() if said else run.info.start_time / 1000
        if time.time() - since > SILENT_SECONDS:
            if "mlflow.parentRunId" in tags:
                client.set_terminated(run_id, "KILLED")
            parents.add(tags.get("mlflow.parentRunId", run_id))
    for parent in parents:
        settle(client, experiment, parent)


def settle(client: Any, experiment: str, parent: str) -> None:
    """End the parent run once no child is RUNNING, with the worst status of them; superseded children do not count."""
    children = _find(client, experiment, {"mlflow.parentRunId": parent})
    ended = {one.info.status for one in children if one.data.tags.get("kind") != "superseded"}
    if "RUNNING" not in ended:
        worst = [status for status in ("FAILED", "KILLED") if status in ended]
        client.set_terminated(parent, worst[0] if worst else "FINISHED")


def unless_refused(action: Callable[..., object], *arguments: Any) -> None:
    """Do it; if MLflow will never accept it (`FOR_GOOD`), log and skip it, as it would block all that follows."""
    from mlflow.exceptions import MlflowException

    try:
        action(*arguments)
    except MlflowException as error:
        if error.error_code not in FOR_GOOD:
            raise
        print(f"left out: {error}", flush=True)
