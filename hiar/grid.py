"""The grid of denoising steps by video blocks, the orders in which it is walked, and which walks are legal.

Cell (n, j) takes block n from level t_j to t_{j+1}. It needs the block's own previous step, and the earlier blocks of
its window as context at the level that the method prescribes (Sec. 3.1, Eq. 6-9). Contexts are in KV caches: one per
step, or a single one of finished blocks for Self-Forcing. A walk is a sequence of passes, each one forward call of the
network on one cell or on several that do not depend on each other. Pure Python.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from hiar.config import Context, ContextLevel, Order, Passes, require_order
from hiar.contexts import ContextRule, rule_of
from hiar.errors import require


class Cell(NamedTuple):
    """Block ``block`` at step ``step``, both counted from 0."""

    block: int
    step: int


@dataclass(frozen=True)
class Grid:
    """``blocks`` x ``steps`` cells under one context rule.

    window: blocks that a cell attends to, its own included. sinks: first blocks, which stay in every window.
    given: first blocks, already clean, that serve only as context. blocks=None: endless (not for step_first).
    """

    blocks: int | None
    steps: int
    rule: ContextRule
    window: int
    sinks: int = 0
    given: int = 0

    def __post_init__(self) -> None:
        if self.window < self.sinks + 1:
            raise ValueError("the window must hold the sinks and the block itself")

    def cache(self, step: int) -> int:
        """Index of the cache that cells of ``step`` read."""
        return min(step, self.caches - 1)

    @property
    def caches(self) -> int:
        return self.rule.caches(self.steps)

    @property
    def slots(self) -> int:
        """How many blocks a cache holds: those of a window, but no more than there are."""
        return self.window if self.blocks is None else min(self.window, self.blocks)

    def leaves(self, step: int) -> int | None:
        """Index of the cache in which denoising a cell of ``step`` leaves its block's context; None if in none."""
        return self.rule.leaves(step)

    def writes(self, step: int) -> bool:
        """Whether a separate pass writes contexts after ``step``."""
        return self.rule.writes(step, self.steps)

    def diagonal(self, cell: Cell) -> int:
        """The number of a cell's anti-diagonal, whose cells do not depend on each other.

        A block begins one diagonal after the block before it, or two where its context at a step is left by that
        block's next step.
        """
        return (cell.block - self.given) * self.lag + cell.step

    def on_diagonal(self, number: int) -> Iterator[Cell]:
        """The cells of an anti-diagonal, the newest block first."""
        for step in range(min(number + 1, self.steps)):
            late, between = divmod(number - step, self.lag)
            if not between and (self.blocks is None or self.given + late < self.blocks):
                yield Cell(self.given + late, step)

    @property
    def lag(self) -> int:
        """Diagonals between the cells of two successive blocks at the same step."""
        return self.rule.lag(self.steps)

    def ends(self, cell: Cell) -> bool:
        """Whether ``cell`` is the last one to read its cache."""
        last = self.blocks is not None and cell.block == self.blocks - 1
        return last and not self.rule.left and (not self.rule.finished or cell.step == self.steps - 1)

    def is_context(self, block: int) -> bool:
        """Whether some later block sees ``block``."""
        return self.window > 1 and (self.blocks is None or block < self.blocks - 1)

    def visible(self, block: int) -> list[int]:
        """Earlier blocks that ``block`` sees: the sinks, then the newest ones that fit in the window."""
        newest = range(max(self.sinks, block - (self.window - 1 - self.sinks)), block)
        return [*range(min(self.sinks, block)), *newest]


@dataclass(frozen=True)
class Pass:
    """One forward call: it writes the contexts of some cells into their caches, then denoises others."""

    write: tuple[Cell, ...] = ()
    denoise: tuple[Cell, ...] = ()


def block_first(grid: Grid) -> Iterator[Cell]:
    """All steps of a block before the next block: Self-Forcing."""
    for block in _blocks(grid):
        for step in range(grid.steps):
            yield Cell(block, step)


def step_first(grid: Grid) -> Iterator[Cell]:
    """Algorithm 1: a step on all blocks before the next step."""
    if grid.blocks is None:
        raise ValueError("step_first needs a number of blocks: an endless grid never ends its first step")
    for step in range(grid.steps):
        for block in _blocks(grid):
            yield Cell(block, step)


def diagonal(grid: Grid) -> Iterator[Cell]:
    """Anti-diagonals of the grid, whose cells are independent.

    N blocks of S steps have N + S - 1 of them, and 2 (N - 1) + S under the shared rule.
    """
    for number in itertools.count():
        cells = list(grid.on_diagonal(number))
        if not cells:
            return
        yield from cells


ORDERS: dict[Order, Callable[[Grid], Iterator[Cell]]] = {
    "block_first": block_first,
    "step_first": step_first,
    "diagonal": diagonal,
}


def make_grid(
    context: Context,
    level: ContextLevel | None = None,
    *,
    blocks: int | None,
    steps: int,
    window: int,
    sinks: int = 0,
    given: int = 0,
) -> Grid:
    """The grid of a context; every order walks the same one."""
    return Grid(blocks, steps, rule_of(context, level), window, sinks, given)


def fastest(context: Context) -> tuple[Order, Passes]:
    """The order and passes with the fewest forward calls; all orders of a context give the same video."""
    return ("block_first", "fused") if rule_of(context).finished else ("diagonal", "batched")


def check_walk(order: Order, context: Context, passes: Passes) -> None:
    """Raise BrokenRule if no grid can be walked this way."""
    require_order(order, context)
    require(
        passes != "batched" or order == "diagonal",
        "passes",
        passes,
        f"only the cells of an anti-diagonal are independent; use order diagonal, or other passes with {order}",
    )
    require(
        passes != "fused" or order != "block_first" or rule_of(context).waits,
        "passes",
        passes,
        f"block_first has moved on when the next block reads a context at the {context} level; use order diagonal",
    )


def walk_passes(grid: Grid, order: Order, passes: Passes = "separate", steps: range | None = None) -> Iterator[Pass]:
    """The passes of a walk: first the contexts of given blocks, then the cells of an order, grouped as ``passes`` says.

    steps: only these; other processes walk the rest.
    Raises BrokenRule for an impossible walk, and ValueError for steps that cannot be walked separately.
    """
    check_walk(order, grid.rule.name, passes)
    steps = range(grid.steps) if steps is None else steps
    if grid.rule.left and len(steps) < grid.steps:
        raise ValueError(f"{grid.rule.bound}: one process has to walk all steps")
    for block in range(grid.given):
        if grid.is_context(block):
            # A given block is written to every cache, even where denoising a generated one would leave its context.
            shown = range(grid.steps - 1, grid.steps) if grid.rule.finished else steps
            yield from (Pass(write=(Cell(block, step),)) for step in shown)
    yield from PASSES[passes](grid, (cell for cell in ORDERS[order](grid) if cell.step in steps))


def count_passes(grid: Grid, order: Order, passes: Passes = "separate", steps: range | None = None) -> int:
    """The number of passes of `walk_passes` on a finite grid, by arithmetic. Raises ValueError for an endless one."""
    if grid.blocks is None:
        raise ValueError("an endless grid has no number of passes")
    steps = range(grid.steps) if steps is None else steps
    blocks, contexts = grid.blocks - grid.given, max(0, grid.blocks - 1) if grid.window > 1 else 0
    shown = min(grid.given, contexts)
    count = shown * (1 if grid.rule.finished else len(steps))
    if passes == "batched":
        return count + ((blocks - 1) * grid.lag + len(steps) if blocks and steps else 0)
    count += blocks * len(steps)
    if passes == "separate":
        count += (contexts - shown) * sum(grid.writes(step) for step in steps)
    return count


def separate(grid: Grid, cells: Iterable[Cell]) -> Iterator[Pass]:
    """Denoise each cell, then write its context where a later block will read it."""
    for cell in cells:
        yield Pass(denoise=(cell,))
        if grid.is_context(cell.block) and grid.writes(cell.step):
            yield Pass(write=(cell,))


def fused(grid: Grid, cells: Iterable[Cell]) -> Iterator[Pass]:
    """Algorithm 1's fused passes: [context of n | noisy n + 1] in one forward call."""
    return _fuse(grid, ((cell,) for cell in cells))


def batched(grid: Grid, cells: Iterable[Cell]) -> Iterator[Pass]:
    """A whole anti-diagonal in one forward call, along with the contexts that its cells read."""
    diagonals = itertools.groupby(cells, key=grid.diagonal)
    return _fuse(grid, (tuple(group) for _, group in diagonals))


PASSES: dict[Passes, Callable[[Grid, Iterable[Cell]], Iterator[Pass]]] = {
    "separate": separate,
    "fused": fused,
    "batched": batched,
}


def _fuse(grid: Grid, groups: Iterable[tuple[Cell, ...]]) -> Iterator[Pass]:
    """Write each context in the pass that first reads its cache."""
    waiting: dict[int, Cell] = {}
    for group in groups:
        reads = sorted({grid.cache(cell.step) for cell in group} & waiting.keys())
        yield Pass(write=tuple(waiting.pop(cache) for cache in reads), denoise=group)
        written = (cell for cell in group if grid.is_context(cell.block) and grid.writes(cell.step))
        waiting |= {grid.cache(cell.step): cell for cell in written}


def _blocks(grid: Grid) -> Iterable[int]:
    """The blocks to generate, in order."""
    return itertools.count(grid.given) if grid.blocks is None else range(grid.given, grid.blocks)
