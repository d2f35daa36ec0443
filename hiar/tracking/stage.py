"""Tracking as a stage sees it: lines in the spool, and nothing else. MLflow's absence costs a line, never the run.

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

LOOK_SECONDS = 30.0  # between looks whether somebody sends what is written


class Run:
    """The run of a stage. When tracking is off, and after its first failure, the methods do nothing."""

    def __init__(self) -> None:
        self._writer: Writer | None = None
        self._looked = float("-inf")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record points of curves. Of a step that is done again, after a kill, the first counts."""
        self._add({"metrics": _floats(metrics), "step": step})

    def figures(self, figures: Mapping[str, float], step: int = 0) -> None:
        """Record results, such as scores. Where they are computed again, the last count."""
        self._add({"figures": _floats(figures), "step": step})

    def artifact(self, path: Path) -> None:
        """Keep a copy of a small file: a video, a picture, metrics. Checkpoints are DVC's: tag their hash."""
        self._attempt(lambda writer: writer.keep(path))

    def tag(self, key: str, value: str) -> None:
        """Note a fact, such as the hash of an artifact."""
        self._add({"tags": {key: value}})

    def model(self, source: str, aliases: Sequence[str]) -> None:
        """Note where the trained model is stored: a version of it in MLflow's registry, which takes these aliases."""
        self._add({"model": source, "aliases": list(aliases)})

    def _add(self, event: Mapping[str, Any]) -> None:
        self._attempt(lambda writer: writer.append(event))

    def _attempt(self, action: Callable[[Writer], object]) -> None:
        """Do it while the spool takes it; say so once when it does not."""
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

    work: what decides the result of a training (JSON). The same work that is taken up again goes on in its run; other
    work under the same parameters, as after a change of the code, begins another.
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
    run._attempt(lambda _: None)  # nothing yet, but somebody to send it


def _close(writer: Writer) -> None:
    """Leave the file to the sender, which sees from the released lock that no more will come."""
    writer.close()
    folder = writer.path.parent
    _see_to_sender(folder)
    if reason := trouble(folder):
        _warn(f"not reached ({reason}); records wait in {folder} and are sent once it is")


def _see_to_sender(folder: Path) -> None:
    """Have one, unless the system cannot start another process now: then a later look, or the next stage, does it."""
    with suppress(OSError):
        start_sender(folder)


def _floats(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _warn(text: str) -> None:
    print(f"warning: MLflow: {without_password(' '.join(text.split()))}", file=sys.stderr)
