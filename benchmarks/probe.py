"""The parts of walks, each measured separately: the cost model's inputs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from unittest.mock import patch

import torch

from benchmarks.memory import probe_caches
from benchmarks.presets import Setup
from benchmarks.timing import now
from hiar.grid import Cell, Pass, make_grid
from hiar.models.attention import Row
from hiar.models.blockwise import condition, forward_blocks
from hiar.models.rings import Rings
from hiar.rollout.cell import BlockState, Memory, advance, carry_out

SWEEPS = 4  # over all parts in a round, since a machine's speed drifts
REPEATS, WARM = 5, 3  # of a part in a sweep, and uncounted ones before
Part = Callable[[int], object]  # called with a block that is new to it


class Probe:
    """Measures single passes on rings with full windows, and the work between passes."""

    @torch.no_grad()
    def __init__(self, setup: Setup, rows: int) -> None:
        """Fill the windows. rows: of the largest forward call."""
        preset = setup.preset
        grid = make_grid("output", blocks=10**9, steps=preset.steps, window=preset.window_blocks)
        self.setup, self.grid = setup, grid
        self.memory = Memory(setup.denoiser, setup.rollout(grid))
        self.rings = Rings(probe_caches(rows), grid.window)
        self.noise = self.memory.rollout.noise(Cell(0, 0)).to(self.memory.rollout.text.dtype)
        self.blocks = itertools.count(grid.window)
        for block in range(grid.window):
            self._forward(block, rows)
            self._forward(block, 1, leave=1)
        self.parts = self._parts(rows)

    @property
    def repeats(self) -> int:
        """How many parts, and how many exchanges of each kind, one measurement carries out."""
        return SWEEPS * len(self.parts) * (WARM + REPEATS)

    @torch.no_grad()
    def measure(self, exchanges: Mapping[str, Callable[[], object]] | None = None) -> dict[str, list[float]]:
        """Seconds of everything that `cost_model.Costs` holds, by part.

        Parts alternate with drawing noise, as in walks, so that the processor's caches are as warm as there.
        exchanges: each hands a block to, or takes one from, another process that works at the same time.
        """
        rollout, x = self.memory.rollout, self.noise
        samples: dict[str, list[float]] = defaultdict(list)
        for _, (name, part) in itertools.product(range(SWEEPS), self.parts.items()):
            blocks = [next(self.blocks) for _ in range(WARM + REPEATS)]
            for block in [*blocks, blocks[-1] + 1]:  # ahead, because positions are measured as a separate part
                self.memory.places.of(block)
            for number, block in enumerate(blocks):
                noise = self._time(lambda block: rollout.noise(Cell(block, 0)), block)
                renoise = self._time(lambda block: advance(rollout, Cell(block, 0), x, x), block)
                seconds = self._time(part, block)
                taken = {"noise": noise, "renoise": renoise, name: seconds}
                for kind, exchange in (exchanges or {}).items():
                    taken[kind] = self._time(lambda _, exchange=exchange: exchange(), block)  # type: ignore[misc]
                if number >= WARM:
                    for kind, time in taken.items():
                        samples[kind].append(time)
        x, last = self.noise, Cell(0, self.grid.steps - 1)  # the last step, after which nothing is re-noised
        self.memory.states[0] = BlockState(x, x, x)
        with patch("hiar.rollout.cell.forward_blocks", lambda model, x, *_: x):
            samples["around"] = [
                self._time(lambda _: carry_out(self.memory, Pass(denoise=(last,))), 0) for _ in range(REPEATS)
            ]
        return samples

    def _time(self, part: Part, block: int) -> float:
        start = now(self.setup.device)
        part(block)
        return now(self.setup.device) - start

    def _parts(self, rows: int) -> dict[str, Part]:
        memory = self.memory

        def forward(count: int) -> Part:
            return lambda block: self._forward(block, count)

        return {f"forward {count}": forward(count) for count in range(1, rows + 1)} | {
            "forward empty": lambda _: self._forward(0, 1),
            "forward leave": lambda block: self._forward(block, 1, leave=1),
            "place": lambda block: memory.places.of(block + 10**8),
            "condition": lambda _: condition(self.setup.denoiser, memory.rollout.text, memory.rollout.sigmas),
        }

    def _forward(self, block: int, count: int, leave: int | None = None) -> None:
        """A forward call on ``count`` rows: pairs [context of n | noisy n + 1], each pair with its own cache."""
        memory = self.memory
        x = torch.stack([self.noise] * count, dim=1)
        rows = [Row(block + i % 2, i // 2, leave) for i in range(count)]
        conditions = [memory.conditioning(0)] * count
        forward_blocks(self.setup.denoiser, x, rows, [0] * count, conditions, self.rings, memory.places)
