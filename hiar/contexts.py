"""What a method shows of earlier blocks (Sec. 3.1): the context rules, a line each. Everything else asks them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from hiar.config import Context, ContextLevel


@dataclass(frozen=True)
class ContextRule:
    """How a block is shown to later ones around its step j, which takes it from level t_j to t_{j+1}.

    state: the latent that is shown: as the step began with it, as the step left it, or the x0 that the step saw.
    left: denoising step j + 1 leaves the context in the cache by the way; else a pass of its own writes it.
    finished: blocks are shown once finished, from one cache for all steps, and not after each step.
    scale: c of output context, from clean (0) over the step's output level (1) to its input level (2): t_c = c t_{j+1}
    up to 1, and from there t_{j+1} + (c - 1) (t_j - t_{j+1}).
    """

    name: Context
    state: Literal["before", "after", "x0"]
    left: bool = False
    finished: bool = False
    scale: ContextLevel = 1.0

    def c(self, step: int) -> float:
        """Of a step's output context; where there is a list of them, the last step's is 1."""
        return (*self.scale, 1.0)[step] if isinstance(self.scale, tuple) else self.scale

    def lowered(self, step: int, last: bool) -> Literal["before", "after"] | None:
        """Which state around a step is shown with less noise than it has; None: a state is shown as it is.

        Up to c = 1 it is the one that the step has left. From there on it is the one that it began with, as the last
        step leaves no noise.
        """
        if self.c(step) > 1:
            return "before"
        return None if self.c(step) == 1 or last else "after"

    def level(self, step: int, clean: int) -> int:
        """The level of the state as it was, as an index of the levels; ``clean`` is that of no noise."""
        return {"before": step, "after": step + 1, "x0": clean}[self.state]

    def caches(self, steps: int) -> int:
        """Caches of keys and values: one a step, or one."""
        return 1 if self.finished else steps

    def writes(self, step: int, steps: int) -> bool:
        """Whether a pass of its own writes contexts after ``step``: always, or after the last step only."""
        return step == steps - 1 or not (self.finished or self.left)

    def leaves(self, step: int) -> int | None:
        """The step whose cells see what denoising ``step`` leaves: keys and values at t_j serve step j - 1."""
        return step - 1 if self.left and step > 0 else None

    def lag(self, steps: int) -> int:
        """Diagonals from one block's cell to the same of the next block: two where its next step leaves its context."""
        return 2 if self.left and steps > 1 else 1

    @property
    def waits(self) -> bool:
        """Whether contexts are those of a block that has no step left to do, at the moment when the next one begins."""
        return self.finished or self.left

    @property
    def bound(self) -> str | None:
        """Why the steps of a grid cannot be walked apart, by several processes; None where they can."""
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
    """What earlier blocks are shown as, for people."""
    shares = level if isinstance(level, tuple) else () if level is None else (level,)
    if all(share == 1 for share in shares):
        return f"{context} context"
    said = ", ".join(f"{share:g}" for share in shares)
    return f"{context} context at c = {said}"


def rule_of(context: Context, level: ContextLevel | None = None) -> ContextRule:
    """The rule of a context; level: where output context is not shown at the whole output level, None: it is."""
    return RULES[context] if level is None else replace(RULES[context], scale=level)
