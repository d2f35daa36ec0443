"""The context rules, one line each: which state of an earlier block a method shows to later ones (Sec. 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hiar.config import Context, ContextLevel


@dataclass(frozen=True)
class ContextRule:
    """How a block is shown to later ones at its step j, which takes it from level t_j to t_{j+1}.

    state: the latent that is shown: before the step (at t_j), after it (at t_{j+1}), or the x0 that it estimated.
    left: no pass writes the context: the keys and values that denoising step j + 1 computes anyway stay in the cache.
    finished: a block is shown once, when finished, from one cache for all steps; otherwise after each of its steps.
    scale: c, which sets the noise level t_c of output context. c = 0 is clean, 1 the step's output level, 2 its input
    level: t_c = c t_{j+1} up to c = 1, and t_c = t_{j+1} + (c - 1) (t_j - t_{j+1}) above. A tuple has one c for each
    step but the last.
    """

    name: Context
    state: Literal["before", "after", "x0"]
    left: bool = False
    finished: bool = False
    scale: ContextLevel = 1.0

    def c(self, step: int) -> float:
        """The c of a step. A tuple omits the last step, whose output is clean and shown as it is."""
        return (*self.scale, 1.0)[step] if isinstance(self.scale, tuple) else self.scale

    def lowered(self, step: int, last: bool) -> Literal["before", "after"] | None:
        """The state whose noise is lowered to make a context at t_c; None if a state is shown as it is.

        Below c = 1 this is the state after the step; above, the state before it: t_c lies between their levels.
        """
        if self.c(step) > 1:
            return "before"
        return None if self.c(step) == 1 or last else "after"

    def level(self, step: int, clean: int) -> int:
        """The index of the noise level that ``state`` has at a step; ``clean`` is the index of no noise."""
        return {"before": step, "after": step + 1, "x0": clean}[self.state]

    def caches(self, steps: int) -> int:
        """The number of caches of keys and values: one for all steps, or one for each."""
        return 1 if self.finished else steps

    def writes(self, step: int, steps: int) -> bool:
        """Whether a separate pass writes the context after ``step``; after the last step one always does."""
        return step == steps - 1 or not (self.finished or self.left)

    def leaves(self, step: int) -> int | None:
        """The step that reads the keys and values left by denoising ``step``: those at t_j serve step j - 1."""
        return step - 1 if self.left and step > 0 else None

    def lag(self, steps: int) -> int:
        """Diagonals by which a block lags the one before: two where the next step of that one leaves its context."""
        return 2 if self.left and steps > 1 else 1

    @property
    def waits(self) -> bool:
        """Whether separate passes write only finished blocks, and can be fused with the next block's first step."""
        return self.finished or self.left

    @property
    def bound(self) -> str | None:
        """Why the steps of a grid cannot be split over several processes; None if they can."""
        if self.left:
            return f"{self.name} context goes from later steps back to earlier ones"
        return f"{self.name} context waits for whole blocks" if self.finished else None


RULES: dict[Context, ContextRule] = {
    "finished": ContextRule("finished", "x0", finished=True),  # Self-Forcing
    "clean": ContextRule("clean", "x0"),
    "output": ContextRule("output", "after"),
    "input": ContextRule("input", "before"),
    "shared": ContextRule("shared", "after", left=True),
}


def context_words(context: Context, level: ContextLevel | None) -> str:
    """The context and its level, in words for users."""
    shares = level if isinstance(level, tuple) else () if level is None else (level,)
    if all(share == 1 for share in shares):
        return f"{context} context"
    said = ", ".join(f"{share:g}" for share in shares)
    return f"{context} context at c = {said}"


def rule_of(context: Context, level: ContextLevel | None = None) -> ContextRule:
    """The rule of a context; level: c of output context, None for the step's output level."""
    return RULES[context] if level is None else replace(RULES[context], scale=level)
