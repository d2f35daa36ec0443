"""The training loop: finite, resumable to the bit, and it stops at the first loss that is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.io.process_group import ALONE, Ranks
from hiar.io.progress import Progress
from hiar.io.shards import STATE
from hiar.io.stopping import ENDED, asked_to_stop
from hiar.training.checkpoint import load_state, save_state
from hiar.training.role import Role

Metrics = dict[str, float]


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
    memory: dict[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
    after_step: Callable[[int], object] = lambda done: None,
) -> list[Metrics]:
    """Call ``train_step(i)`` for i = 0 .. steps - 1, going on from the newest state in ``folder``; returns the curve.

    ``memory`` holds what a step keeps for later ones besides ``roles``, such as a replay of rollouts; it is saved with
    them. ``after_step`` is told how many steps are done, before a state of them may be saved: what it has done by then
    is never done again from that state. Of several processes, which call this together, the one that leads logs, tells
    and saves. Raises UserError when a metric is not finite; the state before it is kept. SIGTERM saves a state and
    raises SystemExit where this is the only process; one of several dies of it, and they go on from the state that was
    saved last.
    """
    memory = {} if memory is None else memory
    start, curve = load_state(folder, roles, memory)
    _check_alike(folder, start, ranks)
    saved_at = time.monotonic()
    with (
        asked_to_stop(ranks.size == 1) as stop,
        Progress(label, steps, start) if ranks.leads else nullcontext() as progress,
    ):
        for step in range(start, steps):
            metrics = train_step(step)
            broken = [name for name, value in metrics.items() if not math.isfinite(value)]
            if broken:
                kept = (
                    f"; to go on from the last good state instead: hiar stage ... --restart-from {folder.parent}"
                    if (folder / STATE).exists()
                    else ""
                )
                raise UserError(
                    f"{label}: {broken[0]} = {metrics[broken[0]]} at step {step}; lower the learning rate or the clip "
                    f"and start anew{kept}"
                )
            curve.append({"step": step, **metrics})
            if progress is not None:
                log.log(step, metrics)
                progress.advance(metrics=metrics)
            after_step(step + 1)
            due = stop() or time.monotonic() - saved_at >= 60 * checkpoint_minutes
            if step + 1 < steps and ranks.told(due):
                save_state(folder, step + 1, roles, memory, curve, write=ranks.leads)
                saved_at = time.monotonic()
                if stop():
                    raise SystemExit(ENDED)
    return curve


def _check_alike(folder: Path, start: int, ranks: Ranks) -> None:
    """Raise UserError on all processes when they do not see one state."""
    steps = ranks.gather(torch.tensor(start, device=ranks.device)).tolist()
    for rank, step in enumerate(steps):
        if step != steps[0]:
            raise UserError(
                f"{folder / STATE}: process {rank} goes on from step {step}, process 0 from {steps[0]}; start all in "
                "one folder that they share"
            )
