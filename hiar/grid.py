"""The grid of denoising step by video block, the orders it is walked in, and what makes a walk legal.

Cell (n, j) takes block n from level t_j to t_{j+1}. It needs the block's own previous step, and the earlier blocks of
its window as context at the level the method prescribes (Sec. 3.1, Eq. 6-9). Contexts live in caches of keys and
values: one a step, or a single one of finished blocks for Self-Forcing. A walk is a sequence of passes, each one
forward call of the network. Pure Python.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from hiar.config import Context, Order


class Cell(NamedTuple):
    """Block ``block`` at step ``step``, both counted from 0."""

    block: int
    step: int


@dataclass(frozen=True)
class Grid:
    """``blocks`` x ``steps`` cells under one context rule.

    window: blocks a cell attends to, its own included. sinks: first blocks that stay in every window.
    given: first blocks that are known clean and only serve as context. blocks=None: endless (not for step_first).
    finished: Self-Forcing's reading of clean context: blocks are shown once finished, from one cache for all steps,
    instead of as the step's own estimate of x0.
    """

    blocks: int | None
    steps: int
    context: Context
    window: int
    sinks: int = 0
    given: int = 0
    finished: bool = False

    def __post_init__(self) -> None:
        if self.finished and self.context != "clean":
            raise ValueError("only clean context can wait for finished blocks")
        if self.window < self.sinks + 1:
            raise ValueError("the window must hold the sinks and the block itself")

    def cache(self, step: int) -> int:
        """Index of the cache that cells of ``step`` read."""
        return 0 if self.finished else step

    @property
    def caches(self) -> int:
        return 1 if self.finished else self.steps

    def is_context(self, block: int) -> bool:
        """Whether some later block sees ``block``."""
        return self.window > 1 and (self.blocks is None or block < self.blocks - 1)

    def visible(self, block: int) -> list[int]:
        """Earlier blocks that ``block`` sees: the sinks, then the newest ones the window has room for."""
        newest = range(max(self.sinks, block - (self.window - 1 - self.sinks)), block)
        return [*range(min(self.sinks, block)), *newest]


@dataclass(frozen=True)
class Pass:
    """One forward call: it denoises a cell, writes the context of a cell into that step's cache, or both."""

    denoise: Cell | None = None
    write: Cell | None = None


def block_first(grid: Grid) -> Iterator[Cell]:
    """All steps of a block before the next block: Self-Forcing, and endless streams."""
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
    """Anti-diagonals of the grid, N + S - 1 of them: the cells of one are independent, so steps can be pipelined."""
    for d in itertools.count():
        blocks = [(grid.given + d - step, step) for step in range(min(d + 1, grid.steps))]
        cells = [Cell(block, step) for block, step in blocks if grid.blocks is None or block < grid.blocks]
        if not cells:
            return
        yield from cells


ORDERS: dict[Order, Callable[[Grid], Iterator[Cell]]] = {
    "block_first": block_first,
    "step_first": step_first,
    "diagonal": diagonal,
}


def make_grid(
    order: Order, context: Context, *, blocks: int | None, steps: int, window: int, sinks: int = 0, given: int = 0
) -> Grid:
    """The grid of a method.

    Clean context walked block by block is Self-Forcing's: earlier blocks are shown once finished.
    """
    finished = context == "clean" and order == "block_first"
    return Grid(blocks, steps, context, window, sinks, given, finished)


def passes(grid: Grid, cells: Iterable[Cell]) -> Iterator[Pass]:
    """The separate passes of a walk: denoise each cell, then write its context where a later block will read it."""
    for block in range(grid.given):
        if grid.is_context(block):
            yield from (Pass(write=Cell(block, step)) for step in range(grid.steps) if _writes(grid, step))
    for cell in cells:
        yield Pass(denoise=cell)
        if grid.is_context(cell.block) and _writes(grid, cell.step):
            yield Pass(write=cell)


def check(grid: Grid, walk: Iterable[Pass]) -> None:
    """Raise ValueError at the first pass of a finite ``walk`` that is illegal, or when cells are left undone.

    Legal: a cell is denoised once, after the block's previous step, while its cache holds exactly the blocks it sees;
    a context is written once, in block order, while the state it shows is at hand. In a pass that does both, the write
    comes first.
    """
    if grid.blocks is None:
        raise ValueError("only a finite grid can be checked")
    steps_done = {block: grid.steps if block < grid.given else 0 for block in range(grid.blocks)}
    cached: list[list[int]] = [[] for _ in range(grid.caches)]
    for number, step in enumerate(walk):
        try:
            if step.write is not None:
                _check_write(grid, step.write, steps_done, cached)
            if step.denoise is not None:
                _check_denoise(grid, step.denoise, steps_done, cached)
        except ValueError as error:
            raise ValueError(f"pass {number}, {step}: {error}") from None
    undone = [block for block, done in steps_done.items() if done < grid.steps]
    if undone:
        raise ValueError(f"blocks {undone} are not finished")


def _check_denoise(grid: Grid, cell: Cell, steps_done: dict[int, int], cached: list[list[int]]) -> None:
    if cell.block not in steps_done or not 0 <= cell.step < grid.steps:
        raise ValueError("the cell is outside the grid")
    if steps_done[cell.block] != cell.step:
        raise ValueError(f"the block has been through {steps_done[cell.block]} steps")
    if cached[grid.cache(cell.step)] != grid.visible(cell.block):
        raise ValueError(f"its context holds blocks {cached[grid.cache(cell.step)]}, not {grid.visible(cell.block)}")
    steps_done[cell.block] += 1


def _check_write(grid: Grid, cell: Cell, steps_done: dict[int, int], cached: list[list[int]]) -> None:
    if cell.block not in steps_done or not 0 <= cell.step < grid.steps:
        raise ValueError("the cell is outside the grid")
    if not _writes(grid, cell.step):
        raise ValueError("blocks are shown once finished, after their last step")
    at_hand = {cell.step, cell.step + 1} if grid.context == "input" else {cell.step + 1}
    if cell.block >= grid.given and steps_done[cell.block] not in at_hand:
        raise ValueError(f"the state to show is not at hand: the block has been through {steps_done[cell.block]} steps")
    if cached[grid.cache(cell.step)] != grid.visible(cell.block):
        raise ValueError(f"its context holds blocks {cached[grid.cache(cell.step)]}, not {grid.visible(cell.block)}")
    cached[grid.cache(cell.step)] = grid.visible(cell.block + 1)


def _writes(grid: Grid, step: int) -> bool:
    """Whether contexts are written after ``step``: after every step, or after the last one only."""
    return not grid.finished or step == grid.steps - 1


def _blocks(grid: Grid) -> Iterable[int]:
    block = grid.given
    while grid.blocks is None or block < grid.blocks:
        yield block
        block += 1
