"""Predicted time of a walk from the times of its parts: passes in order, and messages between processes.

Every process runs its passes one after the other. A pass that needs a block of the previous process waits for it.
Nothing is fitted to a walk: costs are those of single passes, measured separately.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hiar.grid import Cell, Grid, Pass


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a walk.

    forward: a forward call on 1, 2, ... rows with full windows. context: one block in one row's window. around: the
    rest of a pass. leave: keeping a row's keys and values in a second cache. noise: a block's initial noise. renoise:
    the step to the next level. place: a block's positions. condition: embedding the prompt and the levels, once per
    process. message: handing a block over, for its sender and for its receiver. delivery: handing a finished block to
    the process with the codec, which sleeps until then and, if all cores are busy, briefly takes the sender's.
    """

    forward: tuple[float, ...]
    context: float = 0.0
    around: float = 0.0
    leave: float = 0.0
    noise: float = 0.0
    renoise: float = 0.0
    place: float = 0.0
    condition: float = 0.0
    message: float = 0.0
    delivery: float = 0.0


@dataclass(frozen=True)
class Slot:
    """A pass and when it runs."""

    step: Pass
    start: float
    end: float


def place_seconds(costs: Costs, grid: Grid, passes: Sequence[Pass]) -> list[float]:
    """Seconds of each pass of one process; the first includes embedding the prompt."""
    seconds, known = [], set[int]()
    for step in passes:
        cells = step.write + step.denoise
        missing = sum(grid.window - 1 - len(grid.visible(cell.block)) for cell in cells)
        blocks = {cell.block for cell in cells}
        time = costs.forward[len(cells) - 1] + costs.around
        time += costs.place * len(blocks - known) - costs.context * missing
        for cell in step.denoise:
            time += costs.noise * (cell.step == 0) + costs.renoise * (cell.step < grid.steps - 1)
            time += costs.leave * (grid.leaves(cell.step) is not None)
        seconds.append(time)
        known |= blocks
    seconds[0] += costs.condition
    return seconds


def timeline(
    places: Sequence[Sequence[Pass]],
    seconds: Iterable[Sequence[float]],
    message: float = 0.0,
    delivery: float = 0.0,
) -> list[list[Slot]]:
    """When every pass of every process runs, if nothing else delays it.

    Every process hands on the blocks of its last step before it does anything else. A message costs its sender and its
    receiver ``message`` each and arrives as soon as it is sent; the last process pays ``delivery`` for each of its own.
    """
    slots, arrived = [], dict[Cell, float]()
    handing_on = [message] * (len(places) - 1) + [delivery]
    for passes, times, hand_on in zip(places, seconds, handing_on, strict=True):
        last = max(cell.step for step in passes for cell in step.denoise)
        clock, row, sent = 0.0, list[Slot](), dict[Cell, float]()
        for step, time in zip(passes, times, strict=True):
            taken = [arrived[before] for c in step.denoise if (before := Cell(c.block, c.step - 1)) in arrived]
            start = max([clock, *taken]) + message * len(taken)
            clock = start + time
            row.append(Slot(step, start, clock))
            for cell in step.denoise:
                if cell.step == last:
                    clock += hand_on
                    sent[cell] = clock
        slots.append(row)
        arrived = sent
    return slots


def predict(costs: Costs, grid: Grid, places: Sequence[Sequence[Pass]], cores: int) -> float:
    """Seconds of a walk with one core per process; fewer cores share the work evenly, at best.

    costs.message and costs.delivery are 0 for a walk within one process.
    """
    seconds = [place_seconds(costs, grid, passes) for passes in places]
    slots = timeline(places, seconds, costs.message, costs.delivery)
    end = max(slot.end for row in slots for slot in row) + costs.delivery
    return max(end, sum(map(sum, seconds)) / cores)
