"""What computes a walk's layers: chosen by measuring on the device, told in the plan, kept when a run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hiar.grid import Cell, fastest, walk_passes
from hiar.io.artifacts import write_text
from hiar.io.progress import tell
from hiar.models.attention import Row
from hiar.models.blockwise import forward_blocks
from hiar.models.compiled import Compiled, compiled, where_it_pays
from hiar.models.denoiser import Denoiser
from hiar.models.generator import Generator, Walk
from hiar.models.kernels import choose_kernel, using
from hiar.rollout.cell import Memory, Rollout

SETTLED = ".computing"  # holds the choice that an unfinished folder was begun with


class Choice(NamedTuple):
    """kernel: attention's, None is torch's own choice. compiled: None where layers run as they are."""

    kernel: str | None = None
    compiled: Compiled | None = None

    def __str__(self) -> str:
        layers = "layers as they are"
        if self.compiled:
            gain, first_call = self.compiled.gain, self.compiled.first_call
            layers = f"compiled layers ({gain:.2f} times as fast, {first_call:.0f} s to compile)"
        return f"{self.kernel or 'default'} attention, {layers}"


def choose(source: Generator, walk: Walk, rollout: Rollout, rollouts: int = 1) -> Choice:
    """What to compute with for so many rollouts like ``rollout``; for none, only the attention kernel is chosen.

    On a CPU layers run as they are: compiled, the world's gain nothing (docs/speed.md).
    """
    config, tokens = source.denoiser.transformer.config, source.block_tokens
    heads, dim = config.num_attention_heads, config.attention_head_dim
    text, videos = rollout.text, len(rollout.samples)
    kernel = choose_kernel(tokens, tokens * rollout.grid.window, heads, dim, videos, text.device, text.dtype)
    if text.device.type == "cpu" or not rollouts:
        return Choice(kernel)
    calls = math.inf
    if rollout.grid.blocks is not None:  # on single blocks, as many as there are in the calls of the walk
        passes = walk_passes(rollout.grid, *fastest(walk.order, walk.context))
        calls = rollouts * sum(len(step.write + step.denoise) for step in passes)
    tell("walk: choosing what computes fastest here; for long runs layers are compiled, which may take minutes")
    with using(kernel):
        return Choice(kernel, where_it_pays(source.denoiser, full_pass(source.denoiser, rollout), calls))


def settle(folder: Path, source: Generator, walk: Walk, rollout: Rollout, rollouts: int) -> Choice:
    """The choice that an unfinished folder of samples was begun with, or is begun with now."""
    path = folder / SETTLED
    if not path.exists():
        write_text(path, json.dumps(choose(source, walk, rollout, rollouts)))
    kernel, layers = json.loads(path.read_text(encoding="utf-8"))
    return Choice(kernel, layers and Compiled(*layers))


@contextmanager
def computing(denoiser: Denoiser, choice: Choice) -> Iterator[None]:
    """Within the body the denoiser computes with a choice."""
    with using(choice.kernel), compiled(denoiser) if choice.compiled else nullcontext():
        yield


@torch.no_grad()
def full_pass(denoiser: Denoiser, rollout: Rollout) -> Callable[[], Tensor]:
    """A forward call on one block whose window is full, to be made as often as one likes."""
    memory = Memory(denoiser, rollout)
    x = rollout.noise(Cell(0, 0))[:, None]

    def forward(block: int = rollout.grid.window) -> Tensor:
        conditions = [memory.conditioning(0)]
        return forward_blocks(denoiser, x, [Row(block, 0)], [0], conditions, memory.rings, memory.places)

    for block in range(rollout.grid.window):
        forward(block)
    return forward
