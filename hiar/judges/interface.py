"""What an observer is, who looks at videos part by part and says by numbers how good they are, and a world's judge.

The judge of a world is a package `hiar.judges.KIND` with a function ``open_judge``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from torch import Tensor

from hiar import config

Findings = dict[str, Tensor]  # by name, each (V, F, ...): what is found in frames F of videos V


class Observer(Protocol):
    """What videos are measured by. Frames come in parts, so that no video has to be in memory as a whole."""

    least_frames: int  # a video must have to be measured

    def look(self, frames: Tensor, before: Tensor | None, prompts: Sequence[str]) -> Findings:
        """What is found in parts of videos, uint8 (V, f, H, W, 3); ``before``: the frames (V, 1, H, W, 3) before."""
        ...

    def measure(self, findings: Findings) -> dict[str, Tensor]:
        """Metrics by name, each (V,), of whole videos."""
        ...


class Judge(Observer, Protocol):
    """The observer of a world's videos."""

    name: str  # of the profile that it is to `hiar score`
    columns: Sequence[str]  # names of the metrics that a comparison shows
    courses: Sequence[str]  # of those that it shows along the video, measured as NAME_segment_1 and so on


def open_judge(world: config.World, score: config.Score, first_block: int, block: int) -> Judge:
    """The judge of a world, of videos whose first block is so many pictures, and every other one ``block``."""
    return cast(Judge, import_module(f"hiar.judges.{world.kind}").open_judge(world, score, first_block, block))
