"""What the sections of params.yaml are made of: names of choices, bounds of numbers, and the rules all of them obey."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hiar.errors import BrokenRule, require

Order = Literal["block_first", "step_first", "diagonal"]
Context = Literal["clean", "output", "input", "shared"]
Passes = Literal["separate", "fused", "batched"]
Prediction = Literal["flow", "x0"]
AttentionMode = Literal["bidirectional", "causal"]
Renoise = Literal["sde", "euler"]
Precision = Literal["no", "bf16"]  # accelerate's mixed precision
Shape = Literal["disc", "wide_bar", "tall_bar", "square", "diamond", "ring"]
Color = Literal["red", "green", "blue", "yellow", "magenta", "cyan", "orange", "white"]
Background = Literal["black", "grey", "navy", "brown", "teal", "olive"]

SEEDS = 2**63  # what torch's generators take
THREADS = 1024  # more than any machine has cores; torch dies of a hundred thousand

# Upper bounds keep numbers that are typing errors from becoming overflows, and sizes from products beyond 64 bits.
Count = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=1, le=2**14)]  # of a tensor along one dimension
Positive = Annotated[float, Field(gt=0, le=1e9)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running average
File = Annotated[Path, Field(strict=False)]  # written as text
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]  # a part of a path


class Section(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def require_order(order: Order, context: Context) -> None:
    """Raise BrokenRule for an order in which no block finds its context."""
    remedy = "shared context is left by a later step of the block before; use block_first or diagonal"
    require(context != "shared" or order != "step_first", "order", order, remedy)


def _distinct(items: Sequence[object]) -> Sequence[object]:
    """The list, refused when it holds the same twice: that would be run, shown and counted twice."""
    first: dict[object, int] = {}
    for place, item in enumerate(items, start=1):
        if item in first:
            remedy = f"holds {item!r} twice, at places {first[item]} and {place}; leave one of them out"
            raise BrokenRule("", items, remedy)
        first[item] = place
    return items


Distinct = AfterValidator(_distinct)
