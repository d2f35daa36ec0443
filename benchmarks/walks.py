"""The walks that are measured, as data, and the passes of each of their processes."""

from __future__ import annotations

from dataclasses import dataclass

from hiar.config import Context, Order, Passes
from hiar.grid import Grid, Pass, walk_passes
from hiar.rollout.walk import split_steps


@dataclass(frozen=True)
class Walk:
    """A way to walk the grid. processes: of a pipeline; 0: none, the walk runs in the calling process."""

    order: Order
    context: Context
    passes: Passes
    processes: int = 0

    @property
    def name(self) -> str:
        if self.processes:
            return f"pipelined {self.passes}, {self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{'shared' if self.context == 'shared' else self.order} {self.passes}"

    def places(self, grid: Grid) -> list[list[Pass]]:
        """The passes of every process, in order."""
        if not self.processes:
            return [list(walk_passes(grid, self.order, self.passes))]
        shares = split_steps(grid.steps, self.processes)
        return [list(walk_passes(grid, "diagonal", self.passes, steps)) for steps in shares]


SELF_FORCING = Walk("block_first", "finished", "separate")
HIAR = Walk("step_first", "output", "separate")
FUSED = Walk("step_first", "output", "fused")
BATCHED = Walk("diagonal", "output", "batched")
SHARED = Walk("block_first", "shared", "separate")
SHARED_BATCHED = Walk("diagonal", "shared", "batched")

ALONE = [
    SELF_FORCING,
    Walk("block_first", "finished", "fused"),
    HIAR,
    FUSED,
    BATCHED,
    SHARED,
    Walk("block_first", "shared", "fused"),
    SHARED_BATCHED,
]


def pipelined(passes: Passes, processes: int) -> Walk:
    """HiAR's grid walked by several processes."""
    return Walk("diagonal", "output", passes, processes)


def all_walks(processes: int) -> list[Walk]:
    """Everything that is measured, with pipelines of up to ``processes`` processes."""
    kinds: tuple[Passes, ...] = ("separate", "fused", "batched")
    return ALONE + [pipelined(passes, count) for count in range(1, processes + 1) for passes in kinds]


def ratios(processes: int) -> list[tuple[Walk, Walk]]:
    """(faster walk, the one it is compared with): the comparisons of interest."""
    pairs = [(FUSED, HIAR), (SHARED, HIAR), (BATCHED, HIAR), (SELF_FORCING, HIAR)]
    pairs += [(SHARED, SELF_FORCING), (SHARED_BATCHED, SELF_FORCING)]
    for count in range(2, processes + 1):
        pairs += [(pipelined("separate", count), HIAR), (pipelined("fused", count), FUSED)]
        pairs += [(pipelined(passes, count), SELF_FORCING) for passes in ("separate", "fused", "batched")]
    return pairs
