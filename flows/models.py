"""The students of an experiment in MLflow's registry: a method is a model there, and what a training made a version."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flows.remote import Remote
from hiar.parameters import load_params
from hiar.report.columns import leading, rank
from hiar.stages.comparison import read_summary
from hiar.storage.runs import key_of, stages_of
from hiar.tracking.stage import tracked


class Model(NamedTuple):
    """A student. source: the address of its folder's object in the store, DVC's list of files and hashes."""

    variant: str
    seed: int
    source: str
    aliases: list[str]


def register_models(remote: Remote) -> None:
    """Record each student whose weights are in an S3 store; elsewhere nobody could take them from."""
    workspace, url = remote.workspace, remote.url
    if not url.startswith("s3://"):
        return
    params = load_params(workspace / "params.yaml")
    for model in models_of(workspace, url):
        with tracked("distill", model.seed, model.variant, params, workspace) as run:
            run.model(model.source, model.aliases)


def models_of(workspace: Path, url: str) -> Iterator[Model]:
    """The students that dvc.lock and metrics/summary.json of a workspace name, as they lie below a remote's ``url``."""
    summary = read_summary(load_params(workspace / "params.yaml"), workspace)
    rows = [row for row in summary if row["stage"] == "distill"]
    stages = stages_of((workspace / "dvc.lock").read_bytes(), workspace / "dvc.lock")
    objects = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    best: dict[str, tuple[float, int]] = {}  # of each method, by the metric that leads where it was scored
    for row in rows:
        if key := leading(row["metrics"]):
            found = (rank(key, row["metrics"][key]["mean"]), -row["seed"])
            best[row["variant"]] = max(found, best.get(row["variant"], found))
    for row in rows:
        variant, seed = row["variant"], row["seed"]
        aliases = [f"seed-{seed}"]
        if variant in best and best[variant][1] == -seed:
            aliases.append("best")
        key = key_of(objects[f"artifacts/seed-{seed}/distill/{variant}"])
        yield Model(variant, seed, f"{url.rstrip('/')}/{key}", aliases)
