"""Which MLflow run the records of a stage belong to, with its name and tags.

A contender, one model of the comparison with one seed, has one run for all stages that work on it (training, samples,
scores), below the parent run of its experiment and parameters. Stages of a seed that are in no comparison (codec,
pairs, the init of a seed) have a run each; score and report write to the experiment's own run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hiar.config import Params
from hiar.io.manifests import code_version

# Sampling stages, and the stage whose model they sample.
SAMPLERS = {"sample-teacher": "teacher", "sample-init": "init", "sample": "distill", "sample-walked": "walked"}
OF_ALL = ("score", "report")  # stages of the experiment as a whole


@dataclass(frozen=True)
class Identity:
    """A run: the experiment's own if ``seed`` is None, a contender's if it has a ``variant``, otherwise a stage's."""

    stage: str | None
    variant: str | None
    seed: int | None

    @property
    def kind(self) -> str:
        """The tag by which lists filter."""
        return "experiment" if self.seed is None else "stage" if self.variant is None else "contender"

    @property
    def name(self) -> str:
        """The run's name, such as "hiar seed 0", "self-forcing seed 0 init", "codec seed 0"."""
        after = " init" if self.kind == "contender" and self.stage == "init" else ""
        return f"{self.variant or self.stage} seed {self.seed}{after}"


def identity_of(stage: str, seed: int | None, variant: str | None) -> Identity:
    """The run that the records of a stage of dvc.yaml belong to."""
    if stage in OF_ALL:
        return Identity(None, None, None)
    if stage == "vbench":  # of all contenders of a seed, by the dimension that ``variant`` names
        return Identity(f"vbench {variant}", None, seed)
    trained = SAMPLERS.get(stage, stage)
    return Identity(trained, "teacher" if trained == "teacher" else variant, seed)


def describe(identity: Identity, params: Params, workspace: Path) -> dict[str, Any]:
    """Everything needed to find or create a run: its experiment's name, parameters, names and tags; JSON."""
    tree = params.model_dump(mode="json")
    walk = params.variants.get((identity.variant or "").rpartition("/")[2])  # STUDENT/WALK for walked ones
    facts = {"stage": identity.stage, "method": identity.variant, "seed": identity.seed}
    facts |= {"order": walk.order, "context": walk.context} if walk else {}
    own = {name: str(value) for name, value in facts.items() if value is not None}
    name = "default" if workspace.resolve() == project_of(workspace) else workspace.resolve().name
    return {
        "collection": collection(),
        "digest": digest(tree),
        "experiment": name,
        "params": dict(_flat("", tree)),
        "identity": asdict(identity),
        "own": own,
        "tags": {**own, "kind": identity.kind, "experiment": name, "commit": _commit()},
        "name": identity.name,
    }


def collection() -> str:
    """The name of MLflow's experiment: one per project, so that the project's experiments can be compared in it."""
    given = os.environ.get("HIAR_EXPERIMENT")
    return f"hiar/{given}" if given else "hiar"


def project_of(workspace: Path) -> Path:
    """The project of a workspace, found by the workspace's link to its code."""
    return (workspace / "hiar").resolve().parent


def digest(value: Any) -> str:
    """SHA-256, in hex, of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """``{"a": {"b": [1]}}`` as ``("a.b", "[1]")``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def _commit() -> str:
    code = code_version()
    return f"{code['commit']} with changes" if code["dirty"] else str(code["commit"])
