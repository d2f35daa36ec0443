"""Tracking in a stage: it only writes lines to the spool, so that without MLflow it prints a warning and goes on.

Without MLFLOW_TRACKING_URI, runs go to ``mlflow.db`` and ``mlruns/`` of the project. HIAR_TRACKING=off turns tracking
off, and HIAR_EXPERIMENT names MLflow's experiment.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hiar.config import Params
from hiar.errors import without_password
from hiar.tracking.identity import describe, digest, identity_of, project_of
from hiar.tracking.spool import Writer, spool_folder, start_sender, trouble

LOOK_SECONDS = 30.0  # between checks that a sender runs


class Run:
    """The run of a stage. When tracking is off, and after its first failure, the methods do nothing."""

    def __init__(self) -> None:
        self._writer: Writer | None = None
        self._looked = float("-inf")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record points of curves. If a step is repeated after a kill, its first point counts."""
        self._add({"metrics": _floats(metrics), "step": step})

    def figures(self, figures: Mapping[str, float], step: int = 0) -> None:
        """Record results, such as scores. If they are computed again, the last count."""
        self._add({"figures": _floats(figures), "step": step})

    def artifact(self, path: Path) -> None:
        """Keep a copy of a small file: a video, a picture, metrics. Checkpoints are DVC's: tag their hash."""
        self._attempt(lambda writer: writer.keep(path))

    def tag(self, key: str, value: str) -> None:
        """Record a fact as a tag, such as the hash of an artifact."""
        self._add({"tags": {key: value}})

    def model(self, source: str, aliases: Sequence[str]) -> None:
        """Record where the trained model is stored, as a version in MLflow's registry that gets these aliases."""
        self._add({"model": source, "aliases": list(aliases)})

    def _add(self, event: Mapping[str, Any]) -> None:
        self._attempt(lambda writer: writer.append(event))

    def _attempt(self, action: Callable[[Writer], object]) -> None:
        """Write to the spool; after the first failure, warn once and write no more."""
        if self._writer is None:
            return
        try:
            action(self._writer)
        except OSError as error:
            self._writer = None
            _warn(f"the rest of this run is not recorded ({error})")
            return
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._looked = time.monotonic()
            _see_to_sender(self._writer.path.parent)


@contextmanager
def tracked(
    stage: str, seed: int | None, variant: str | None, params: Params, workspace: Path, work: Any = None
) -> Iterator[Run]:
    """Record the body as work of a stage of dvc.yaml; it ends as FINISHED, FAILED (an exception) or KILLED.

    work: what decides the result of a training (JSON). If the same work is resumed, it continues in its run; other work
    under the same parameters, as after a change of the code, begins a new one.
    """
    run = Run()
    if os.environ.get("HIAR_TRACKING") != "off":
        _open(run, stage, seed, variant, params, workspace, work)
    status = "KILLED"
    try:
        yield run
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        run._attempt(lambda writer: writer.append({"end": status}))
        run._attempt(_close)


def _open(
    run: Run, stage: str, seed: int | None, variant: str | None, params: Params, workspace: Path, work: Any
) -> None:
    """Give a run its file in the spool."""
    described = describe(identity_of(stage, seed, variant), params, workspace)
    described["work"] = None if work is None else digest(work)
    try:
        run._writer = Writer(spool_folder(project_of(workspace)), described)
    except OSError as error:
        _warn(f"this run is not recorded ({error})")
    run._attempt(lambda _: None)  # writes nothing, but starts a sender


def _close(writer: Writer) -> None:
    """Close the file; the sender sees from the released lock that no more will come."""
    writer.close()
    folder = writer.path.parent
    _see_to_sender(folder)
    if reason := trouble(folder):
        _warn(f"not reachable ({reason}); records wait in {folder} and are sent once it is")


def _see_to_sender(folder: Path) -> None:
    """Start a sender if there is none; if the system cannot now, a later check or the next stage does."""
    with suppress(OSError):
        start_sender(folder)


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _warn(text: str) -> None:
    print(f"warning: MLflow: {without_password(' '.join(text.split()))}", file=sys.stderr)
