"""Memory that walks need, computed before they start."""

from __future__ import annotations

import torch

from benchmarks.flops import cache_bytes, sizes
from benchmarks.presets import Setup
from benchmarks.walks import Walk
from hiar.grid import Grid, Pass


def caches(grid: Grid, passes: list[Pass]) -> int:
    """How many of the grid's caches the passes of one process use."""
    cells = [cell for step in passes for cell in step.write + step.denoise]
    left = [cache for cell in cells if (cache := grid.leaves(cell.step)) is not None]
    return len({grid.cache(cell.step) for cell in cells}.union(left))


def process_caches(setup: Setup, walk: Walk, blocks: int) -> list[int]:
    """Bytes of keys and values in each process of a walk."""
    grid = setup.preset.grid(walk, blocks)
    shape, batch = sizes(setup.preset), len(setup.text)
    return [
        cache_bytes(shape, grid, caches(grid, passes), batch, setup.preset.dtype.itemsize)
        for passes in walk.places(grid)
    ]


def probe_caches(rows: int) -> int:
    """How many caches measuring single passes on up to ``rows`` rows needs: one per pair, two to leave keys."""
    return max(2, (rows + 1) // 2)


def probe_bytes(setup: Setup, walk: Walk, blocks: int) -> int:
    """Bytes of keys and values while a walk's largest pass is measured on its own."""
    grid = setup.preset.grid(walk, blocks)
    rows = max(len(step.write + step.denoise) for passes in walk.places(grid) for step in passes)
    return cache_bytes(sizes(setup.preset), grid, probe_caches(rows), len(setup.text), setup.preset.dtype.itemsize)


@torch.no_grad()
def decode_bytes(setup: Setup) -> int:
    """Peak bytes of GPU memory that decoding a block takes; 0 on a CPU."""
    if setup.device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(setup.device)
    before, decode = torch.cuda.memory_allocated(setup.device), setup.codec.decoding()
    for _ in range(2):  # with the second block, the decoder also holds its cache of the first
        decode(torch.zeros(len(setup.text), *setup.preset.shape, device=setup.device))
    return torch.cuda.max_memory_allocated(setup.device) - before


def memory_needed(setup: Setup, walk: Walk, blocks: int) -> int:
    """Bytes that a walk needs beyond ``setup``.

    On a CPU: the caches of all processes, which map the same weights. On GPUs: those of the fullest one, with its
    weights in a pipeline, else with the decoder's memory.
    """
    held = process_caches(setup, walk, blocks)
    if setup.device.type != "cuda":
        return sum(held)
    decoding = 0 if walk.processes else decode_bytes(setup)  # a pipeline decodes on a GPU of its own
    weights = sum(p.numel() * p.element_size() for p in setup.denoiser.parameters()) if walk.processes else 0
    return weights + max(held) + decoding
