"""The training loop: finite, resumable to the bit, and it stops at the first loss that is not finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from hiar.errors import UserError
from hiar.io.progress import Progress
from hiar.training.checkpoint import STATE, load_state, save_state
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
) -> list[Metrics]:
    """Call ``train_step(i)`` for i = 0 .. steps - 1, going on from the newest state in ``folder``; returns the curve.

    ``memory`` holds what a step keeps for later ones besides ``roles``, such as a replay of rollouts; it is saved with
    them. Raises UserError when a metric is not finite; the state before it is kept.
    """
    memory = {} if memory is None else memory
    start, curve = load_state(folder, roles, memory)
    saved_at = time.monotonic()
    with Progress(label, steps, start) as progress:
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
            log.log(step, metrics)
            progress.advance(metrics=metrics)
            if time.monotonic() - saved_at >= 60 * checkpoint_minutes and step + 1 < steps:
                save_state(folder, step + 1, roles, memory, curve)
                saved_at = time.monotonic()
    return curve
