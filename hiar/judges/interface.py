"""The interface of an observer, which measures videos part by part, and of a world's judge, which is its observer.

The judge of a world is a package `hiar.judges.KIND` with a function ``open_judge``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from torch import Tensor

from hiar import config

Findings = dict[str, Tensor]  # by name, each (V, F, ...): what is found in F frames of V videos


class Observer(Protocol):
    """Measures videos. Frames come in parts, so that no video has to be in memory as a whole."""

    least_frames: int  # that a video must have to be measured

    def look(self, frames: Tensor, before: Tensor | None, prompts: Sequence[str]) -> Findings:
        """Findings on parts of videos, uint8 (V, f, H, W, 3); ``before``: the preceding frames (V, 1, H, W, 3)."""
        ...

    def measure(self, findings: Findings) -> dict[str, Tensor]:
        """Metrics by name, each (V,), of whole videos."""
        ...


class Judge(Observer, Protocol):
    """The observer of a world's videos."""

    name: str  # of its profile in `hiar score`
    columns: Sequence[str]  # names of the metrics that a comparison shows
    courses: Sequence[str]  # of the metrics that are shown over time, measured as NAME_segment_1 and so on


def open_judge(world: config.World, score: config.Score, first_block: int, block: int) -> Judge:
    """The judge of a world, for videos of ``first_block`` pictures in the first block and ``block`` in all others."""
    return cast(Judge, import_module(f"hiar.judges.{world.kind}").open_judge(world, score, first_block, block))
