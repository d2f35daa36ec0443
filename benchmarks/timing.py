"""Clocks: walks, single passes, and what happens outside of passes, each measured by itself."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import torch

from benchmarks.presets import SEED, Setup
from benchmarks.walks import Walk
from hiar.grid import Cell, Pass, make_grid
from hiar.models.attention import Row
from hiar.models.blockwise import condition, forward_blocks
from hiar.models.codec import to_frames
from hiar.models.rings import Rings
from hiar.noise import generator
from hiar.rollout.cell import BlockState, Memory, advance, carry_out
from hiar.rollout.walk import walk as walk_grid

REPEATS = 20  # of a single pass in a round, after warm-up
PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is the device's peak


@dataclass(frozen=True)
class Timing:
    """One walk: seconds from its start to each finished block, and the device's memory at its fullest, bytes."""

    blocks: Sequence[float]
    peak_memory: int | None

    @property
    def seconds(self) -> float:
        return self.blocks[-1]

    @property
    def between(self) -> float:
        """Median seconds from one finished block to the next."""
        return statistics.median(b - a for a, b in itertools.pairwise(self.blocks)) if len(self.blocks) > 1 else 0.0


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def time_walk(setup: Setup, walk: Walk, blocks: int, decode: bool) -> Timing:
    """Carry out a walk in this process; ``decode``: every block's frames as soon as it is finished."""
    device = setup.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rollout = setup.rollout(setup.preset.grid(walk, blocks))
    start = now(device)
    ends = []
    for _, latent in walk_grid(setup.denoiser, rollout, walk.order, passes=walk.passes):
        if decode and setup.codec is not None:
            to_frames(setup.codec.decode(latent.float())).cpu()
        ends.append(now(device) - start)
    return Timing(ends, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


@torch.no_grad()
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: the best of a few."""
    n = PEAK_SIZE[device.type]
    left, right = (torch.randn(n, n, generator=generator(SEED, i)).to(device, dtype) for i in range(2))
    return 2 * n**3 / min(repeated(lambda: left @ right, device))


def repeated(act: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> list[float]:
    """Seconds of each of ``repeats`` calls, after three that are not counted."""
    times = []
    for _ in range(repeats + 3):
        start = now(device)
        act()
        times.append(now(device) - start)
    return times[3:]


class Probe:
    """Single passes and the work between them, on rings whose windows are full."""

    def __init__(self, setup: Setup) -> None:
        preset = setup.preset
        grid = make_grid("step_first", "output", blocks=10**6, steps=preset.steps, window=preset.window_blocks)
        self.setup, self.grid = setup, grid
        self.memory = Memory(setup.denoiser, setup.rollout(grid))

    @torch.no_grad()
    def measure(self, rows: int) -> dict[str, list[float]]:
        """Seconds of all that `cost_model.Costs` holds but messages, with forwards of 1 to ``rows`` rows."""
        full = self.grid.window
        samples = {f"forward {count}": self.forward(count, full) for count in range(1, rows + 1)}
        rollout, model = self.memory.rollout, self.setup.denoiser
        x, device = rollout.noise(Cell(0, 0)), self.setup.device
        block = itertools.count(10**6)
        samples["forward empty"] = self.forward(1, 0)
        samples["forward leave"] = self.forward(1, full, leave=True)
        samples["noise"] = repeated(lambda: rollout.noise(Cell(next(block), 0)), device)
        samples["renoise"] = repeated(lambda: advance(rollout, Cell(next(block), 0), x, x), device)
        samples["place"] = repeated(lambda: self.memory.places.of(next(block)), device)
        samples["condition"] = repeated(lambda: condition(model, rollout.text, rollout.sigmas), device)
        samples["around"] = self.around()
        return samples

    def around(self) -> list[float]:
        """What carrying out a pass takes beside its forward call: the network does nothing, no noise is due."""
        x = self.memory.rollout.noise(Cell(0, 0))
        self.memory.states[0] = BlockState(x, x, x)
        step = Pass(denoise=(Cell(0, self.grid.steps - 1),))
        with patch("hiar.rollout.cell.forward_blocks", lambda model, x, *_: x):
            return repeated(lambda: carry_out(self.memory, step), self.setup.device)

    def forward(self, count: int, first: int, leave: bool = False) -> list[float]:
        """Forward calls of ``count`` rows, pairs of [context of n | noisy n + 1] on a cache each, from block ``first``.

        Block 0 sees nothing but itself and is asked again and again; otherwise blocks follow each other.
        """
        memory = self.memory
        rings = Rings(count + 1, self.grid.window)
        noise = memory.rollout.noise(Cell(0, 0))
        x = torch.stack([noise] * count, dim=1)
        conditions = [memory.conditioning(0)] * count

        def call(block: int) -> None:
            rows = [Row(block + i % 2, i // 2, count if leave else None) for i in range(count)]
            forward_blocks(self.setup.denoiser, x, rows, [0] * count, conditions, rings, memory.places)

        for block in range(first):
            call(block)
        blocks = itertools.count(first) if first else itertools.repeat(0)
        for block in range(first, first + 64):  # positions are a cost of their own
            memory.places.of(block)
        return repeated(lambda: call(next(blocks)), self.setup.device)
