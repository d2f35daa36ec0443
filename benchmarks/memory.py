"""Memory that walks need, predicted before they start."""

from __future__ import annotations

import os

import torch

from benchmarks.flops import cache_bytes, sizes
from benchmarks.presets import Setup
from benchmarks.walks import Walk
from hiar.grid import Grid, Pass


def caches(grid: Grid, passes: list[Pass]) -> int:
    """How many of the grid's caches the passes of one process touch."""
    cells = [cell for step in passes for cell in step.write + step.denoise]
    left = [cache for cell in cells if (cache := grid.leaves(cell.step)) is not None]
    return len({grid.cache(cell.step) for cell in cells}.union(left))


def largest_caches(setup: Setup, walk: Walk, blocks: int) -> list[int]:
    """Bytes of keys and values in each process of a walk."""
    grid = setup.preset.grid(walk, blocks)
    shape, batch = sizes(setup.preset), len(setup.text)
    return [
        cache_bytes(shape, grid, caches(grid, passes), batch, setup.preset.dtype.itemsize)
        for passes in walk.places(grid)
    ]


def memory_needed(setup: Setup, walk: Walk, blocks: int) -> int:
    """Bytes of weights and caches: of the fullest GPU, or of all processes where they share one memory."""
    weights = sum(p.numel() * p.element_size() for p in setup.denoiser.parameters())
    needed = [weights + kept for kept in largest_caches(setup, walk, blocks)]
    return max(needed) if setup.device.type == "cuda" else sum(needed)


def device_memory(device: torch.device) -> int:
    """Bytes in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
