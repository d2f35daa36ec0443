"""Every walk of every method is legal, and the checker lets nothing else pass."""

from __future__ import annotations

import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from hiar.grid import ORDERS, Cell, Grid, Pass, check, make_grid, passes

CONTEXTS = ["clean", "output", "input"]
orders = st.sampled_from(sorted(ORDERS))


@st.composite
def grids(draw: st.DrawFn) -> tuple[str, Grid]:
    order, blocks, window = draw(orders), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    grid = make_grid(
        order,
        draw(st.sampled_from(CONTEXTS)),
        blocks=blocks,
        steps=draw(st.integers(1, 5)),
        window=window,
        sinks=draw(st.integers(0, window - 1)),
        given=draw(st.integers(0, blocks - 1)),
    )
    return order, grid


def legal(grid: Grid, walk: list[Pass]) -> bool:
    """The definition, with whole histories instead of the checker's running state."""
    done: list[Cell] = []
    shown: list[tuple[int, Cell]] = []  # (cache, cell written)
    for step in walk:
        if step.write is not None:
            n, j = step.write
            if not (0 <= n < grid.blocks and 0 <= j < grid.steps):  # type: ignore[operator]
                return False
            if grid.finished and j != grid.steps - 1:
                return False
            progress = sum(cell.block == n for cell in done)
            if n >= grid.given and progress != j + 1 and not (grid.context == "input" and progress == j):
                return False
            written = [cell.block for cache, cell in shown if cache == grid.cache(j)]
            if grid.window > 1 + grid.sinks:
                if written != list(range(n)):
                    return False
            elif written[: grid.sinks] != list(range(min(n, grid.sinks))) or n in written[: grid.sinks]:
                return False
            shown.append((grid.cache(j), step.write))
        if step.denoise is not None:
            n, j = step.denoise
            if not (grid.given <= n < grid.blocks and 0 <= j < grid.steps):  # type: ignore[operator]
                return False
            if [cell.step for cell in done if cell.block == n] != list(range(j)):
                return False
            written = [cell.block for cache, cell in shown if cache == grid.cache(j)]
            if grid.window > 1 + grid.sinks:
                if written != list(range(n)):
                    return False
            elif written[: grid.sinks] != list(range(min(n, grid.sinks))):
                return False
            done.append(step.denoise)
    return len(done) == (grid.blocks - grid.given) * grid.steps  # type: ignore[operator]


def accepted(grid: Grid, walk: list[Pass]) -> bool:
    try:
        check(grid, walk)
    except ValueError:
        return False
    return True


@cases(grids())
def test_every_order_walks_every_cell_once_and_legally(case: tuple[str, Grid]) -> None:
    order, grid = case
    cells = list(ORDERS[order](grid))
    assert sorted(cells) == [Cell(n, j) for n in range(grid.given, grid.blocks) for j in range(grid.steps)]
    check(grid, passes(grid, cells))


@cases(grids(), st.data())
def test_the_checker_agrees_with_the_definition_on_damaged_walks(case: tuple[str, Grid], data: st.DataObject) -> None:
    order, grid = case
    walk = list(passes(grid, ORDERS[order](grid)))
    for _ in range(data.draw(st.integers(1, 3))):
        i, j = (data.draw(st.integers(0, len(walk) - 1)) for _ in range(2))
        match data.draw(st.sampled_from(["swap", "drop", "repeat", "replace"])):
            case "swap":
                walk[i], walk[j] = walk[j], walk[i]
            case "drop" if len(walk) > 1:
                del walk[i]
            case "repeat":
                walk.insert(i, walk[j])
            case "replace":
                cell = Cell(data.draw(st.integers(-1, grid.blocks)), data.draw(st.integers(-1, grid.steps)))  # type: ignore[operator]
                walk[i] = Pass(write=cell) if walk[i].denoise is None else Pass(denoise=cell)
    assert accepted(grid, walk) == legal(grid, walk)


@cases(grids())
def test_orders_of_step_wise_contexts_are_interchangeable(case: tuple[str, Grid]) -> None:
    _, grid = case
    if not grid.finished:
        for order in ORDERS.values():
            check(grid, passes(grid, order(grid)))


def test_finished_context_needs_whole_blocks() -> None:
    grid = make_grid("block_first", "clean", blocks=2, steps=2, window=2)
    assert grid.finished
    with pytest.raises(ValueError, match="its context holds blocks"):
        check(grid, passes(grid, ORDERS["step_first"](grid)))


def test_diagonals_are_as_many_as_the_paper_says() -> None:
    """N + S - 1 diagonals, and the cells of one do not depend on each other."""
    grid = make_grid("diagonal", "output", blocks=6, steps=4, window=3)
    diagonals: dict[int, list[Cell]] = {}
    for cell in ORDERS["diagonal"](grid):
        diagonals.setdefault(cell.block + cell.step, []).append(cell)
    assert len(diagonals) == 6 + 4 - 1
    assert list(diagonals) == sorted(diagonals)


@pytest.mark.parametrize("order", ["block_first", "diagonal"])
def test_endless_walks_go_on(order: str) -> None:
    grid = make_grid(order, "output", blocks=None, steps=3, window=2)
    walk = passes(grid, ORDERS[order](grid))
    newest = max(step.denoise.block for step, _ in zip(walk, range(300), strict=False) if step.denoise)
    assert newest > 40


def test_step_first_cannot_be_endless() -> None:
    with pytest.raises(ValueError, match="step_first needs a number of blocks"):
        next(ORDERS["step_first"](make_grid("step_first", "output", blocks=None, steps=3, window=2)))


def test_a_window_sees_its_sinks_and_its_newest_blocks() -> None:
    grid = make_grid("step_first", "output", blocks=10, steps=1, window=4, sinks=1)
    assert [grid.visible(n) for n in (0, 1, 3, 4, 9)] == [[], [0], [0, 1, 2], [0, 2, 3], [0, 7, 8]]
