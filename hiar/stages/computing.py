"""What computes a walk's layers: chosen by measuring on the device, shown in the plan, kept when a run resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mode
from typing import NamedTuple

import torch
from torch import Tensor

from hiar.grid import Cell, count_passes, fastest, walk_passes
from hiar.io.files import write_text
from hiar.io.progress import tell
from hiar.models.attention import Row
from hiar.models.blockwise import forward_blocks
from hiar.models.card import Walk
from hiar.models.compiled import Compiled, compiled, where_it_pays
from hiar.models.denoiser import Denoiser
from hiar.models.generator import Generator
from hiar.models.kernels import choose_kernel, using
from hiar.rollout.cell import Memory, Rollout

SETTLED = ".computing"  # the file in an unfinished folder with the choice it was begun with

ENOUGH = 64  # blocks of a long walk that show how many blocks most of its passes compute


class Choice(NamedTuple):
    """kernel: the attention kernel, None for torch's own choice. compiled: None if layers run uncompiled."""

    kernel: str | None = None
    compiled: Compiled | None = None

    def __str__(self) -> str:
        layers = "uncompiled layers"
        if self.compiled:
            gain, first_call = self.compiled.gain, self.compiled.first_call
            layers = f"compiled layers ({gain:.2f} times as fast, {first_call:.0f} s to compile)"
        return f"{self.kernel or 'default'} attention, {layers}"


def choose(source: Generator, walk: Walk, rollout: Rollout, rollouts: int = 1) -> Choice:
    """The fastest choice for ``rollouts`` rollouts like ``rollout``; for 0, only the attention kernel is chosen.

    On a CPU layers run uncompiled: the built-in world's model gains nothing from compiling (docs/speed.md).
    """
    config, tokens = source.denoiser.transformer.config, source.block_tokens
    heads, dim = config.num_attention_heads, config.attention_head_dim
    text, videos = rollout.text, len(rollout.samples)
    source.turn(source.denoiser)
    kernel = choose_kernel(tokens, tokens * rollout.grid.window, heads, dim, videos, text.device, text.dtype)
    if text.device.type == "cpu" or not rollouts:
        return Choice(kernel)
    rows, calls = work(walk, rollout)
    tell("walk: timing what is fastest here; for long runs layers are compiled, which may take minutes")
    with using(kernel):
        forward = full_pass(source.denoiser, rollout, rows)
        return Choice(kernel, where_it_pays(source.denoiser, forward, rollouts * calls))


def work(walk: Walk, rollout: Rollout) -> tuple[int, float]:
    """How many blocks most forward calls of a walk compute, and how many calls there are (inf if endless)."""
    grid, walked = rollout.grid, fastest(walk.context)
    beginning = replace(grid, blocks=ENOUGH if grid.blocks is None else min(grid.blocks, ENOUGH))
    rows = mode(len(step.write + step.denoise) for step in walk_passes(beginning, *walked))
    return rows, math.inf if grid.blocks is None else count_passes(grid, *walked)


def settle(folder: Path, source: Generator, walk: Walk, rollout: Rollout, rollouts: int) -> Choice:
    """The choice that an unfinished folder of samples was begun with; made and written now if there is none."""
    path = folder / SETTLED
    if not path.exists():
        write_text(path, json.dumps(choose(source, walk, rollout, rollouts)))
    kernel, layers = json.loads(path.read_text(encoding="utf-8"))
    return Choice(kernel, layers and Compiled(*layers))


@contextmanager
def computing(denoiser: Denoiser, choice: Choice) -> Iterator[None]:
    """Within the body the denoiser computes with ``choice``."""
    with using(choice.kernel), compiled(denoiser) if choice.compiled else nullcontext():
        yield


@torch.no_grad()
def full_pass(denoiser: Denoiser, rollout: Rollout, rows: int = 1) -> Callable[[], Tensor]:
    """Return a repeatable forward call on ``rows`` blocks whose windows are full; pairs of blocks share a cache."""
    memory = Memory(denoiser, rollout)
    x = torch.stack([rollout.noise(Cell(0, 0)).to(rollout.text.dtype)] * rows, dim=1)

    def forward(block: int = rollout.grid.window) -> Tensor:
        places = [Row(block + row % 2, row // 2) for row in range(rows)]
        conditions = [memory.conditioning(0)] * rows
        return forward_blocks(denoiser, x, places, [0] * rows, conditions, memory.rings, memory.places)

    for block in range(rollout.grid.window):
        forward(block)
    return forward
