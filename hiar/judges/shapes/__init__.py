"""The judge of the built-in world: its oracle, and metrics that need none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from hiar.config import Score, ShapesWorld
from hiar.judges.interface import Findings
from hiar.judges.shapes.fit import Atlas, atlases
from hiar.judges.shapes.metrics import measured
from hiar.judges.shapes.oracle import Judgement, judge
from hiar.metrics.looks import Looks, look
from hiar.metrics.motion import LEAST_FRAMES


class Oracle:
    """See `hiar.judges.interface.Judge`."""

    name = "oracle"
    columns = (
        "good",
        "visible",
        "shape_right",
        "residual",
        "color_error",
        "saturation_drift",
        "saturation_trend",
        "sharpness_drift",
        "sharpness_trend",
        "background_shift",
        "border_jump",
        "hops",
        "smoothed_speed",
        "dynamic",
    )
    courses = ("good", "saturation_shift", "background_shift")

    def __init__(self, world: ShapesWorld, score: Score, first_block: int, block: int) -> None:
        self.world, self.score, self.blocks = world, score, (first_block, block)
        self.least_frames = max(LEAST_FRAMES, score.segments)

    @cached_property
    def tables(self) -> list[Atlas]:
        """Every shape at every position of the coarse grid."""
        return atlases(self.world)

    def look(self, frames: Tensor, before: Tensor | None, prompts: Sequence[str]) -> Findings:
        judgement, looks = judge(self.world, frames, prompts, self.tables), look(frames, before)
        return vars(judgement) | vars(looks)

    def measure(self, findings: Findings) -> dict[str, Tensor]:
        looks = Looks(**{name: findings[name] for name in Looks.__dataclass_fields__})
        judgement = Judgement(**{name: findings[name] for name in Judgement.__dataclass_fields__})
        return measured(looks, judgement, self.world, self.score, self.blocks)


open_judge = Oracle
