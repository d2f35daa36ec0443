"""The training loop: finite, resumable to the bit, and stopped by the first metric that is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

from torch import Tensor

from hiar.errors import UserError
from hiar.io.process_group import ALONE, Ranks
from hiar.io.progress import Progress
from hiar.io.states import newest
from hiar.io.stopping import ENDED, asked_to_stop
from hiar.training.checkpoint import Saving, load_state
from hiar.training.parallel import Metrics
from hiar.training.role import Role


class Log(Protocol):
    """Where metrics go while training runs."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...


def train(
    label: str,
    steps: int,
    train_step: Callable[[int], Metrics],
    roles: Mapping[str, Role],
    folder: Path,
    log: Log,
    *,
    checkpoint_minutes: float,
    checkpoints_kept: int = 1,
    checkpoint_milestone: int | None = None,
    memory: dict[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
    after_step: Callable[[int], object] = lambda done: None,
    restarts: bool = True,
) -> list[Metrics]:
    """Call ``train_step(i)`` for i = 0 .. steps - 1, resuming from the newest state in ``folder``; returns the curve.

    A state is saved every ``checkpoint_minutes``, of which the newest ``checkpoints_kept`` stay, and one after each
    multiple of ``checkpoint_milestone`` updates, all of which stay.
    ``memory`` holds what a step keeps for later ones besides ``roles``, such as a replay of rollouts; it is saved with
    them, in the background. ``after_step(done)`` is called before a state of ``done`` steps may be saved: a run that
    resumes from that state does not repeat the call. ``restarts``: whether `--restart-from` can resume these states.
    Several processes call this together; the leading one logs and shows progress. Raises UserError when a metric is not
    finite, or a state cannot be written; the one before it is kept. After SIGTERM, of one process or all, they save a
    state at the same step, and all raise SystemExit.
    """
    memory = {} if memory is None else memory
    start, curve = load_state(folder, roles, memory, ranks)
    began = time.monotonic()
    with (
        asked_to_stop() as stop,
        Saving(folder, roles, memory, checkpoints_kept, checkpoint_milestone, ranks) as saving,
        Progress(label, steps, start) if ranks.leads else nullcontext() as progress,
    ):
        for step in range(start, steps):
            metrics = train_step(step)
            _check_finite(label, step, metrics, saving, restarts)
            curve.append({"step": step, **metrics})
            if progress is not None:
                log.log(step, metrics)
                progress.advance(metrics=metrics)
            after_step(step + 1)
            late = ranks.leads and time.monotonic() - began >= 60 * checkpoint_minutes
            milestone = checkpoint_milestone is not None and (step + 1) % checkpoint_milestone == 0
            due, stopping, written = ranks.votes(late or milestone, stop(), saving.written())
            if written == ranks.size:
                saving.finish()
            if step + 1 < steps and (due or stopping):
                saving.begin(step + 1, curve)
                began = time.monotonic()
                if stopping:
                    saving.finish()
                    raise SystemExit(ENDED)
    return curve


def _check_finite(label: str, step: int, metrics: Metrics, saving: Saving, restarts: bool) -> None:
    """Raise UserError when a metric is not finite, after the state being written is complete."""
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not broken:
        return
    saving.finish()
    advice = "lower the learning rate or the clip and start over"
    if restarts and newest(saving.folder) is not None:
        advice += f"; to resume from the last good state instead: hiar stage ... --restart-from {saving.folder.parent}"
    raise UserError(f"{label}: {broken[0]} = {metrics[broken[0]]} at step {step}; {advice}")
