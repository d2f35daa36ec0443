"""The judge of Wan's videos, without weights: it measures how their looks drift, not what they show."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hiar import config
from hiar.judges.interface import Findings
from hiar.metrics.looks import Looks, look, looks_metrics


class Plain:
    """See `hiar.judges.interface.Judge`."""

    name = "looks"
    columns = (
        "saturation_drift",
        "saturation_trend",
        "sharpness_drift",
        "sharpness_trend",
        "border_jump",
    )
    courses = ("saturation_shift",)

    def __init__(self, world: config.WanWorld, score: config.Score, first_block: int, block: int) -> None:
        self.segments, self.blocks = score.segments, (first_block, block)
        self.least_frames = score.segments

    def look(self, frames: Tensor, before: Tensor | None, prompts: Sequence[str]) -> Findings:
        return dict(vars(look(frames, before)))

    def measure(self, findings: Findings) -> dict[str, Tensor]:
        return looks_metrics(Looks(**findings), self.segments, self.blocks)


open_judge = Plain
