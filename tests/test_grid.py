"""Every walk of every method is legal: it computes each cell once, with the context that the method prescribes."""

from __future__ import annotations

import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from hiar.config import Passes
from hiar.errors import BrokenRule
from hiar.grid import ORDERS, PASSES, Cell, Grid, Pass, check_walk, count_passes, fastest, make_grid, walk_passes

CONTEXTS = ["finished", "clean", "output", "input", "shared"]


def possible(order: str, context: str, passes: Passes) -> bool:
    try:
        check_walk(order, context, passes)  # type: ignore[arg-type]
    except BrokenRule:
        return False
    return True


WALKS = [
    (order, context, passes)
    for order in sorted(ORDERS)
    for context in CONTEXTS
    for passes in PASSES
    if possible(order, context, passes)
]


@st.composite
def walks(draw: st.DrawFn) -> tuple[Grid, list[Pass]]:
    """A grid and the passes of a possible walk over it."""
    order, context, passes = draw(st.sampled_from(WALKS))
    blocks, window = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    grid = make_grid(
        context,
        blocks=blocks,
        steps=draw(st.integers(1, 5)),
        window=window,
        sinks=draw(st.integers(0, window - 1)),
        given=draw(st.integers(0, blocks - 1)),
    )
    return grid, list(walk_passes(grid, order, passes))


def legal(grid: Grid, walk: list[Pass]) -> bool:
    """Whether a walk of a finite grid is legal, judged by its whole history.

    A cell is denoised once, after its block's previous step, when its cache holds exactly the blocks before it. A
    context is written once, in block order, while its latents are available. A pass writes before it denoises, and
    none of the cells that it denoises depends on another one.
    """
    done: list[Cell] = []
    shown: list[list[int]] = [[] for _ in range(grid.caches)]  # all blocks ever written to each cache

    def sees_what_it_should(cache: int, n: int) -> bool:
        if grid.window > 1 + grid.sinks:
            return shown[cache] == list(range(n))
        return shown[cache][: grid.sinks] == list(range(min(n, grid.sinks))) and n not in shown[cache][: grid.sinks]

    def inside(n: int, j: int) -> bool:
        return 0 <= n < grid.blocks and 0 <= j < grid.steps  # type: ignore[operator]

    def may_write(n: int, j: int) -> bool:
        last = j == grid.steps - 1
        progress = sum(cell.block == n for cell in done)
        if n < grid.given:
            if grid.rule.finished and not last:
                return False
            # Under the shared rule a context at t_{j+1} is computed among the contexts of step j + 1.
            return grid.rule.name != "shared" or last or sees_what_it_should(j + 1, n)
        if (grid.rule.finished or grid.rule.name == "shared") and not last:
            return False
        return progress == j + 1 or (grid.rule.name == "input" and progress == j)

    for step in walk:
        for n, j in step.write:
            if not inside(n, j) or not may_write(n, j) or not sees_what_it_should(grid.cache(j), n):
                return False
            shown[grid.cache(j)].append(n)
        for n, j in step.denoise:
            if not inside(n, j) or n < grid.given or [cell.step for cell in done if cell.block == n] != list(range(j)):
                return False
            if not sees_what_it_should(grid.cache(j), n):
                return False
            if grid.rule.name == "shared" and j > 0 and not sees_what_it_should(j - 1, n):
                return False
        if len({n for n, _ in step.denoise}) < len(step.denoise):
            return False
        done += step.denoise
        if grid.rule.name == "shared":
            for n, j in step.denoise:
                if j > 0:
                    shown[j - 1].append(n)
    return len(done) == (grid.blocks - grid.given) * grid.steps  # type: ignore[operator]


@cases(walks())
def test_every_walk_does_every_cell_once_and_legally(case: tuple[Grid, list[Pass]]) -> None:
    grid, walk = case
    cells = [cell for step in walk for cell in step.denoise]
    assert sorted(cells) == [Cell(n, j) for n in range(grid.given, grid.blocks) for j in range(grid.steps)]
    assert legal(grid, walk)


@cases(walks(), st.data())
def test_a_walk_without_one_of_its_cells_or_with_one_twice_is_not_legal(
    case: tuple[Grid, list[Pass]], data: st.DataObject
) -> None:
    grid, walk = case
    place = data.draw(st.sampled_from([i for i, step in enumerate(walk) if step.denoise]))
    assert not legal(grid, walk[:place] + walk[place + 1 :])
    assert not legal(grid, [*walk[: place + 1], Pass(denoise=walk[place].denoise), *walk[place + 1 :]])


@pytest.mark.parametrize(
    ("context", "order"), [("output", "step_first"), ("finished", "block_first"), ("shared", "block_first")]
)
def test_walks_take_the_promised_number_of_forward_calls(context: str, order: str) -> None:
    """N blocks, S steps: separate passes write each context that is read in a call of its own, fused ones do not."""
    blocks, steps = 10, 4
    grid = make_grid(context, blocks=blocks, steps=steps, window=3)  # type: ignore[arg-type]
    written = (blocks - 1) * (steps if context == "output" else 1)
    assert len(list(walk_passes(grid, order, "separate"))) == blocks * steps + written  # type: ignore[arg-type]
    assert len(list(walk_passes(grid, order, "fused"))) == blocks * steps  # type: ignore[arg-type]
    diagonals = {"output": blocks + steps - 1, "shared": 2 * (blocks - 1) + steps}
    if context in diagonals:
        assert len(list(walk_passes(grid, "diagonal", "batched"))) == diagonals[context]


@cases(walks())
def test_passes_are_counted_without_being_made(case: tuple[Grid, list[Pass]]) -> None:
    grid, _ = case
    for order, context, passes in WALKS:
        if context == grid.rule.name:
            made = list(walk_passes(grid, order, passes))  # type: ignore[arg-type]
            assert count_passes(grid, order, passes) == len(made)  # type: ignore[arg-type]
    if grid.rule.name != "shared" and not grid.rule.finished:
        for share in (range(0), range(1), range(grid.steps - 1, grid.steps), range(grid.steps // 2, grid.steps)):
            assert count_passes(grid, "diagonal", "batched", share) == len(
                list(walk_passes(grid, "diagonal", "batched", share))
            )


def test_counting_takes_no_longer_for_many_blocks() -> None:
    grid = make_grid("output", blocks=10**30, steps=4, window=3)
    assert count_passes(grid, "diagonal", "batched") == 10**30 + 3
    with pytest.raises(ValueError, match="endless"):
        count_passes(make_grid("output", blocks=None, steps=4, window=3), "diagonal")


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("order", sorted(ORDERS))
def test_the_fastest_walk_is_possible(order: str, context: str) -> None:
    if (order, context, "separate") in WALKS:
        fast_order, passes = fastest(context)  # type: ignore[arg-type]
        assert (fast_order, context, passes) in WALKS


@pytest.mark.parametrize("context", CONTEXTS)
def test_no_walk_has_fewer_forward_calls_than_the_fastest(context: str) -> None:
    grid = make_grid(context, blocks=9, steps=4, window=3)  # type: ignore[arg-type]
    calls = {(order, passes): count_passes(grid, order, passes) for order, own, passes in WALKS if own == context}  # type: ignore[arg-type]
    assert calls[fastest(context)] == min(calls.values())  # type: ignore[arg-type,index]


@cases(walks())
def test_a_cache_ends_with_the_last_cell_that_needs_it(case: tuple[Grid, list[Pass]]) -> None:
    """Any earlier, its context would be missing; any later, step_first order would hold more than one cache."""
    grid, walk = case
    last: dict[int, Cell] = {}  # by cache
    for step in walk:
        last |= {grid.cache(cell.step): cell for cell in step.write}
        for cell in sorted(step.denoise):
            last |= {cache: cell for cache in (grid.cache(cell.step), grid.leaves(cell.step)) if cache is not None}
    ended = {grid.cache(cell.step): cell for step in walk for cell in step.denoise if grid.ends(cell)}
    # Under the shared rule the next step still leaves its context there: caches stay until the end.
    assert ended == ({} if grid.rule.left else last)


def test_a_window_must_hold_its_sinks_and_the_block_itself() -> None:
    with pytest.raises(ValueError, match="the window must hold the sinks and the block itself"):
        make_grid("output", blocks=3, steps=2, window=2, sinks=2)


@cases(walks())
def test_orders_of_step_wise_contexts_are_interchangeable(case: tuple[Grid, list[Pass]]) -> None:
    grid, _ = case
    if not grid.rule.finished:
        for order in ORDERS:
            if possible(order, grid.rule.name, "separate"):
                assert legal(grid, list(walk_passes(grid, order)))


def test_finished_context_needs_whole_blocks() -> None:
    grid = make_grid("finished", blocks=2, steps=2, window=2)
    assert grid.rule.finished
    assert not legal(grid, list(PASSES["separate"](grid, ORDERS["step_first"](grid))))
    with pytest.raises(BrokenRule, match="finished context needs finished blocks"):
        list(walk_passes(grid, "step_first"))


def test_shared_context_cannot_be_walked_step_by_step() -> None:
    grid = make_grid("shared", blocks=3, steps=2, window=2)
    assert not legal(grid, list(PASSES["separate"](grid, ORDERS["step_first"](grid))))


def test_shared_contexts_of_given_blocks_need_earlier_blocks_at_the_next_step() -> None:
    grid = make_grid("shared", blocks=3, steps=2, window=2, given=2)
    first, *rest = walk_passes(grid, "block_first")
    assert legal(grid, [first, *rest])
    rest[0], rest[1] = rest[1], rest[0]  # block 1 at step 0, whose keys need block 0 at step 1
    assert not legal(grid, [first, *rest])


@pytest.mark.parametrize(
    ("order", "context", "passes"),
    [("step_first", "shared", "separate"), ("step_first", "output", "batched"), ("block_first", "output", "fused")],
)
def test_impossible_walks_are_refused_before_their_first_pass(order: str, context: str, passes: str) -> None:
    grid = make_grid(context, blocks=3, steps=2, window=2)  # type: ignore[arg-type]
    with pytest.raises(BrokenRule):
        next(walk_passes(grid, order, passes))  # type: ignore[arg-type]


def test_a_share_of_the_steps_is_refused_for_shared_context() -> None:
    grid = make_grid("shared", blocks=3, steps=4, window=2)
    with pytest.raises(ValueError, match="back to earlier ones"):
        next(walk_passes(grid, "diagonal", "separate", range(2)))


def test_the_number_of_diagonals_is_the_papers() -> None:
    """N + S - 1 diagonals, one after the other; the cells of one diagonal do not depend on each other."""
    grid = make_grid("output", blocks=6, steps=4, window=3)
    diagonals = [cell.block + cell.step for cell in ORDERS["diagonal"](grid)]
    assert len(diagonals) == 6 * 4
    assert len(set(diagonals)) == 6 + 4 - 1
    assert diagonals == sorted(diagonals)


@pytest.mark.parametrize(("order", "context", "passes"), [walk for walk in WALKS if walk[0] != "step_first"])
def test_endless_walks_go_on(order: str, context: str, passes: str) -> None:
    grid = make_grid(context, blocks=None, steps=3, window=2)  # type: ignore[arg-type]
    walk = walk_passes(grid, order, passes)  # type: ignore[arg-type]
    newest = max(cell.block for step, _ in zip(walk, range(300), strict=False) for cell in step.denoise)
    assert newest > 40


def test_step_first_cannot_be_endless() -> None:
    with pytest.raises(ValueError, match="step_first needs a number of blocks"):
        next(ORDERS["step_first"](make_grid("output", blocks=None, steps=3, window=2)))


def test_a_window_sees_its_sinks_and_its_newest_blocks() -> None:
    grid = make_grid("output", blocks=10, steps=1, window=4, sinks=1)
    assert [grid.visible(n) for n in (0, 1, 3, 4, 9)] == [[], [0], [0, 1, 2], [0, 2, 3], [0, 7, 8]]
