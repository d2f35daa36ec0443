"""Draw the grid of every walk from its real passes: ``python -m benchmarks.draw_walks`` writes docs/walks/*.svg."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

from benchmarks.cost_model import Slot, timeline
from benchmarks.walks import BATCHED, FUSED, HIAR, SELF_FORCING, SHARED, SHARED_BATCHED, Walk, pipelined
from hiar.grid import Cell, Grid, make_grid
from hiar.io.files import write_text

FOLDER = Path(__file__).parents[1] / "docs" / "walks"
BLOCKS, STEPS, WINDOW = 7, 4, 4
CELL, GAP, LEFT, TOP, BOTTOM = 50, 12, 74, 76, 62
INK, SOFT = "#17181a", "#5c6066"
RAMPS = [((222, 234, 250), (24, 78, 148)), ((253, 230, 216), (166, 56, 10))]  # first to last call, one per process

CAPTIONS: dict[str, tuple[Walk, str]] = {
    "block_first": (SELF_FORCING, "Self-Forcing: a block is finished, then shown to the next at every step"),
    "step_first": (HIAR, "HiAR, Algorithm 1: a step on all blocks before the next step"),
    "step_first_fused": (FUSED, "HiAR: a context goes along with the call that reads it first"),
    "diagonal_batched": (BATCHED, "HiAR: an anti-diagonal and the contexts it reads are one call"),
    "shared": (SHARED, "shared: denoising a block leaves it as context of the step before"),
    "shared_batched": (SHARED_BATCHED, "shared: a block begins two calls after the block before it"),
    "pipelined": (pipelined("batched", 2), "HiAR: equal numbers in two colours are calls at the same time"),
}


class Call(NamedTuple):
    """A forward call: its process, and its time, counted from 1 in calls of equal length."""

    process: int
    number: int


def calls(grid: Grid, slots: list[list[Slot]]) -> tuple[dict[Cell, list[Call]], dict[Cell, list[Call]]]:
    """The calls that denoise each cell, and those that write its block into the cache of its step."""
    denoised: dict[Cell, list[Call]] = {}
    shown: dict[Cell, list[Call]] = {}
    for process, row in enumerate(slots):
        for slot in row:
            call = Call(process, round(slot.start) + 1)
            for cell in slot.step.write:
                shown.setdefault(cell, []).append(call)
            for cell in slot.step.denoise:
                denoised.setdefault(cell, []).append(call)
                if grid.leaves(cell.step) is not None and grid.is_context(cell.block):
                    shown.setdefault(Cell(cell.block, cell.step - 1), []).append(call)
    return denoised, shown


def draw(walk: Walk, caption: str, blocks: int = BLOCKS, steps: int = STEPS, window: int = WINDOW) -> str:
    """An SVG drawing of a walk: blocks from left to right, steps from top to bottom."""
    grid = make_grid(walk.context, blocks=blocks, steps=steps, window=window)
    places = walk.places(grid)
    slots = timeline(places, [[1.0] * len(passes) for passes in places])
    denoised, shown = calls(grid, slots)
    total = max(call.number for group in denoised.values() for call in group)
    width, height = LEFT + blocks * (CELL + GAP) + 16, TOP + steps * (CELL + GAP) + BOTTOM
    count = " + ".join(str(len(passes)) for passes in places)
    body = [
        _text(16, 24, walk.name, INK, 15, bold=True),
        _text(width - 16, 24, f"{count} forward calls", SOFT, 12, "end"),
        _text(16, 43, caption, SOFT),
        *_heads(grid),
    ]
    for cells, mark in ((denoised, _cell), (shown, _context)):
        for cell, group in sorted(cells.items()):
            body += [mark(cell, call, _color(call, total)) for call in group]
    body += _key(height)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{escape(walk.name)}">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(body)}</svg>\n'
    )


def _corner(cell: Cell) -> tuple[int, int]:
    return LEFT + cell.block * (CELL + GAP), TOP + cell.step * (CELL + GAP)


def _cell(cell: Cell, call: Call, color: tuple[str, str]) -> str:
    x, y = _corner(cell)
    fill, ink = color
    return (
        f'<g class="cell"><title>block {cell.block + 1}, step {cell.step + 1}: call {call.number}</title>'
        f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="7" fill="{fill}"/>'
        f"{_text(x + CELL / 2, y + CELL / 2 + 5, str(call.number), ink, 15, 'middle')}</g>"
    )


def _context(cell: Cell, call: Call, color: tuple[str, str]) -> str:
    x, y = _corner(cell)
    fill, ink = color
    x, y = x + CELL + 1, y + CELL - 6
    return (
        f'<g class="context"><title>context of block {cell.block + 1}, step {cell.step + 1}: call {call.number}</title>'
        f'<circle cx="{x}" cy="{y}" r="10.5" fill="{fill}" stroke="#ffffff" stroke-width="2"/>'
        f"{_text(x, y + 3.5, str(call.number), ink, 10, 'middle')}</g>"
    )


def _color(call: Call, total: int) -> tuple[str, str]:
    """A call's colour, darker for later calls, and the colour of text on it."""
    share = (call.number - 1) / max(1, total - 1)
    first, last = RAMPS[call.process % len(RAMPS)]
    fill = ", ".join(str(round(a + (b - a) * share)) for a, b in zip(first, last, strict=True))
    return f"rgb({fill})", "#ffffff" if share > 0.45 else INK


def _heads(grid: Grid) -> Iterator[str]:
    assert grid.blocks is not None
    for block in range(grid.blocks):
        yield _text(_corner(Cell(block, 0))[0] + CELL / 2, TOP - 10, f"block {block + 1}", SOFT, 12, "middle")
    for step in range(grid.steps):
        yield _text(LEFT - 14, _corner(Cell(0, step))[1] + CELL / 2 + 4, f"step {step + 1}", SOFT, 12, "end")


def _key(height: int) -> list[str]:
    y = height - 36
    square = f'<rect x="16" y="{y}" width="16" height="16" rx="3" fill="#c9d8ee"/>'
    circle = f'<circle cx="24" cy="{y + 26}" r="8" fill="#c9d8ee"/>'
    return [
        square,
        _text(40, y + 12, "the forward call that denoises the block at this step", SOFT),
        circle,
        _text(40, y + 30, "the call that shows the block to later ones", SOFT),
    ]


def _text(x: float, y: float, text: str, fill: str, size: int = 12, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )


def main() -> None:
    """Write one drawing per walk."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (walk, caption) in CAPTIONS.items():
        write_text(FOLDER / f"{name}.svg", draw(walk, caption))


if __name__ == "__main__":
    main()
