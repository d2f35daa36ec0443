"""Parts that sections of params.yaml share: names of choices, bounds of numbers, and rules for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from hiar.errors import BrokenRule, require

Order = Literal["block_first", "step_first", "diagonal"]
Context = Literal["finished", "clean", "output", "input", "shared"]
Passes = Literal["separate", "fused", "batched"]
Prediction = Literal["flow", "x0"]
AttentionMode = Literal["bidirectional", "causal"]
# Stages that several processes can share.
SHARED = ("teacher", "pairs", "init", "distill", "sample", "sample-teacher", "sample-init", "sample-walked")
DriftProfile = Literal["drift", "drift-lite"]
VBenchDimension = Literal[
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
]
Renoise = Literal["sde", "euler"]
Precision = Literal["no", "bf16"]  # accelerate's mixed precision
Shape = Literal["disc", "wide_bar", "tall_bar", "square", "diamond", "ring"]
Color = Literal["red", "green", "blue", "yellow", "magenta", "cyan", "orange", "white"]
Background = Literal["black", "grey", "navy", "brown", "teal", "olive"]

SEEDS = 2**63  # seeds of torch's generators are below this
THREADS = 1024  # more than any machine has cores; torch crashes with a hundred thousand

# Upper bounds keep typing errors from becoming overflows, and products of sizes within 64 bits.
Count = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=1, le=2**14)]  # of a tensor along one dimension
Positive = Annotated[float, Field(gt=0, le=1e9)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running average
File = Annotated[Path, Field(strict=False)]  # written as text
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256 of a file
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]  # a part of a path


class Section(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def require_order(order: Order, context: Context) -> None:
    """Raise BrokenRule for an order that the context does not allow."""
    remedy = "shared context is written by a later step of the previous block; use block_first or diagonal"
    require(context != "shared" or order != "step_first", "order", order, remedy)
    remedy = "finished context needs finished blocks; use block_first, or context clean, a step's own x0 prediction"
    require(context != "finished" or order == "block_first", "order", order, remedy)
    remedy = "is a step's x0 prediction, for the other orders; Self-Forcing uses finished"
    require(context != "clean" or order != "block_first", "context", context, remedy)


def require_level(context: Context, level: float | tuple[float, ...] | None) -> None:
    """Raise BrokenRule for output context without a level, and for other contexts with one."""
    if context == "output":
        remedy = (
            "0 is clean, 1.0 the step's output level, 2.0 its input level; or give a number for each step but the last"
        )
        require(level is not None, "level", level, remedy)
    else:
        require(level is None, "level", level, f"the level of {context} context is fixed; write null")


def _shares(level: object) -> object:
    """The number or list of numbers, each from 0 to 2; a list as a tuple. Raises BrokenRule for anything else."""
    parts = level if isinstance(level, list | tuple) and level else (level,)
    for share in parts:
        number = isinstance(share, int | float) and not isinstance(share, bool)
        require(number and 0 <= share <= 2, "", level, "should be a number from 0 to 2, or a list of such numbers")
    return tuple(parts) if isinstance(level, list) else level


# c, from clean context (0) through the step's output level (1) to its input level (2): one number, or one for each
# step but the last, whose context is then its clean output.
ContextLevel = Annotated[float | tuple[float, ...], BeforeValidator(_shares)]


def _distinct(items: Sequence[object]) -> Sequence[object]:
    """The list. Raises BrokenRule for duplicates, which would be run, shown and counted twice."""
    first: dict[object, int] = {}
    for place, item in enumerate(items, start=1):
        if item in first:
            remedy = f"holds {item!r} twice, as items {first[item]} and {place}; remove one"
            raise BrokenRule("", items, remedy)
        first[item] = place
    return items


Distinct = AfterValidator(_distinct)
