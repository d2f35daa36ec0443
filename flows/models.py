"""The students of an experiment in MLflow's registry: each method is a model there, each trained student a version."""

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
    """A student. source: the address in the store of its folder's object, DVC's list of files and hashes."""

    variant: str
    seed: int
    source: str
    aliases: list[str]


def register_models(remote: Remote) -> None:
    """Register each student, if the remote is on S3: others could not fetch the weights from anywhere else."""
    workspace, url = remote.workspace, remote.url
    if not url.startswith("s3://"):
        return
    params = load_params(workspace / "params.yaml")
    for model in models_of(workspace, url):
        with tracked("distill", model.seed, model.variant, params, workspace) as run:
            run.model(model.source, model.aliases)


def models_of(workspace: Path, url: str) -> Iterator[Model]:
    """The students that a workspace's dvc.lock and metrics/summary.json name, with sources below a remote's ``url``."""
    summary = read_summary(load_params(workspace / "params.yaml"), workspace)
    rows = [row for row in summary if row["stage"] == "distill"]
    stages = stages_of((workspace / "dvc.lock").read_bytes(), workspace / "dvc.lock")
    objects = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    best: dict[str, tuple[float, int]] = {}  # of each method, by the leading metric of its scores
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
