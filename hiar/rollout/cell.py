"""The one place where cells of the grid are denoised and their contexts are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from hiar.config import Conventions, Renoise
from hiar.grid import Cell, Grid, Pass
from hiar.models.attention import Row
from hiar.models.blockwise import Conditioning, Places, condition, forward_blocks
from hiar.models.denoiser import Denoiser
from hiar.models.rings import RecordedRings, Rings
from hiar.noise import normals
from hiar.schedule import add_noise, euler_step, with_less_noise
from hiar.transfer import upload

OURS = Conventions(given="level", sinks="turn", context_noise=0.0)


@dataclass(frozen=True)
class Rollout:
    """What a walk generates: the grid, its noise levels, the samples and their texts.

    sigmas: (steps + 1,) or more, ending with 0, see `schedule.step_sigmas`; a grid with fewer steps exits early, with
    its last x0 prediction as the result. shape: (C, k, H, W) of one block. samples: the number of each video, which
    determines its noise. text: (B, words, dim). changes: texts of later prompts, by the first block that has them.
    moved: index in the video of the grid's first block; a block's noise depends on its index in the video.
    """

    grid: Grid
    sigmas: Tensor
    shape: tuple[int, int, int, int]
    renoise: Renoise
    seed: int
    samples: Sequence[int]
    text: Tensor
    changes: Mapping[int, Tensor] = field(default_factory=dict)
    conventions: Conventions = OURS
    moved: int = 0

    def noise(self, cell: Cell) -> Tensor:
        """The noise of a cell, (B, C, k, H, W), float32.

        Step 0 is the block's initial noise, step j > 0 re-noises the block to level t_j, and step S re-noises a
        finished block to the level of noisy clean contexts.
        """
        drawn = normals("rollout", self.seed, self.samples, self.shape, step=cell.step, block=cell.block + self.moved)
        return upload(drawn, self.text.device)

    @property
    def clean(self) -> int:
        """The index of the clean level."""
        return len(self.sigmas) - 1

    @property
    def levels(self) -> Tensor:
        """All noise levels at which the network is called, (L,): the sigmas, then context levels between them.

        The latter are the level of noisy clean contexts, if there is one, and t_c of each of the ``lowered`` steps, in
        order.
        """
        noise = self.conventions.context_noise
        between = [self.sigmas.new_tensor(noise)] if noise else []
        between += [self.share(step) * self.sigmas[step + (state == "after")] for step, state in self.lowered.items()]
        return torch.cat([self.sigmas, torch.stack(between)]) if between else self.sigmas

    @property
    def lowered(self) -> dict[int, Literal["before", "after"]]:
        """The steps whose context has c other than 1, each with the state from which noise is removed to reach t_c."""
        lowered, last = self.grid.rule.lowered, self.clean - 1
        return {step: state for step in range(self.clean) if (state := lowered(step, step == last)) is not None}

    def share(self, step: int) -> float | Tensor:
        """t_c as a fraction of the level of the state it is made from: t_{j+1} up to c = 1, t_j beyond."""
        c = self.grid.rule.c(step)
        return c if c <= 1 else (2 - c) * self.sigmas[step + 1] / self.sigmas[step] + (c - 1)

    def lowered_level(self, step: int) -> int:
        """The index of a lowered step's t_c in ``levels``."""
        return len(self.levels) - len(self.lowered) + list(self.lowered).index(step)

    def text_from(self, block: int) -> int | None:
        """The block at which the text of ``block`` took effect; None: it is the initial text."""
        return max((start for start in self.changes if start <= block), default=None)


@dataclass
class BlockState:
    """A block in progress: its latents before and after its last step, and the x0 prediction of that step."""

    before: Tensor
    x0: Tensor
    after: Tensor


@dataclass
class Memory:
    """What a walk keeps between its passes: KV caches, blocks in progress, and what is computed once.

    recorded: some passes are recorded for backward.
    """

    model: Denoiser
    rollout: Rollout
    recorded: bool = False
    states: dict[int, BlockState] = field(default_factory=dict)
    _conditions: dict[int | None, Conditioning] = field(default_factory=dict)

    @cached_property
    def rings(self) -> Rings | RecordedRings:
        grid, turn = self.rollout.grid, self.rollout.conventions.sinks == "turn"
        if self.recorded:
            return RecordedRings(grid.window, grid.sinks, turn and grid.sinks > 0)
        return Rings(grid.caches, grid.slots, min(grid.sinks, grid.slots), turn)

    @cached_property
    def places(self) -> Places:
        patches = self.model.transformer.config.patch_size
        frames, rows, columns = (size // patch for size, patch in zip(self.rollout.shape[1:], patches, strict=True))
        return Places(self.model, (frames, rows, columns), self.rollout.text.device)

    def conditioning(self, block: int) -> Conditioning:
        """The block's prompt and the rollout's levels, embedded once; dropped when no block in progress has it."""
        start = self.rollout.text_from(block)
        if start not in self._conditions:
            oldest = self.rollout.text_from(block - self.rollout.grid.steps) or 0  # of the blocks in progress
            for known in [known for known in self._conditions if (known or 0) < oldest]:
                del self._conditions[known]
            text = self.rollout.text if start is None else self.rollout.changes[start]
            self._conditions[start] = condition(self.model, text, self.rollout.levels)
        return self._conditions[start]


def carry_out(memory: Memory, step: Pass, given: Tensor | None = None, grad_step: int | None = None) -> None:
    """Run one forward call: write the contexts of ``step.write`` for later blocks and denoise ``step.denoise``.

    given: clean latents of the grid's given blocks, (B, C, blocks * k, H, W).
    grad_step: the step whose denoising is recorded for backward; contexts never are.
    """
    rollout = memory.rollout
    with torch.set_grad_enabled(any(cell.step == grad_step for cell in step.denoise)):
        shown = [_shown(memory, cell, given) for cell in step.write]
        starts = [_start(memory, cell) for cell in step.denoise]
        rows = [_context_row(rollout.grid, cell) for cell in step.write]
        rows += [
            Row(cell.block, rollout.grid.cache(cell.step), rollout.grid.leaves(cell.step)) for cell in step.denoise
        ]
        x0 = forward_blocks(
            memory.model,
            torch.stack([latent for latent, _ in shown] + starts, dim=1),
            rows,
            [level for _, level in shown] + [cell.step for cell in step.denoise],
            [memory.conditioning(cell.block) for cell in step.write + step.denoise],
            memory.rings,
            memory.places,
        )
        for cell, x, estimate in zip(step.denoise, starts, x0[:, len(shown) :].unbind(1), strict=True):
            memory.states[cell.block] = BlockState(x, estimate, advance(rollout, cell, x, estimate))


def advance(rollout: Rollout, cell: Cell, x: Tensor, x0: Tensor) -> Tensor:
    """Take a block from level t_j to t_{j+1}, given the x0 prediction at t_j (Eq. 1-3)."""
    sigma, next_sigma = rollout.sigmas[cell.step], rollout.sigmas[cell.step + 1]
    if cell.step + 1 == rollout.clean:
        return x0
    if rollout.renoise == "sde":
        return add_noise(x0, rollout.noise(Cell(cell.block, cell.step + 1)), next_sigma)
    return euler_step(x, x0, sigma, next_sigma)


def given_state(rollout: Rollout, x0: Tensor, cell: Cell) -> BlockState:
    """The state around ``cell`` of a block whose clean latent ``x0`` is known."""
    levels = []
    for step in (cell.step, cell.step + 1):
        noise = rollout.noise(Cell(cell.block, step if rollout.renoise == "sde" else 0))
        levels.append(add_noise(x0, noise, rollout.sigmas[step]))
    return BlockState(levels[0], x0, levels[1])


def _start(memory: Memory, cell: Cell) -> Tensor:
    """The input latent of a cell: noise, or the output of the block's previous step."""
    if cell.step == 0 and cell.block not in memory.states:
        return memory.rollout.noise(cell).to(memory.rollout.text.dtype)
    return memory.states[cell.block].after.detach()


def _shown(memory: Memory, cell: Cell, given: Tensor | None) -> tuple[Tensor, int]:
    """The context of a block after ``cell`` (Sec. 3.1): its latent (B, C, k, H, W), and the index of its level."""
    rollout = memory.rollout
    if cell.block < rollout.grid.given:
        if given is None:
            raise ValueError("the grid has given blocks, but no latents were given")
        k = rollout.shape[1]
        block = given[:, :, cell.block * k : (cell.block + 1) * k]
        if rollout.conventions.given == "clean":
            return block, rollout.clean
        state = given_state(rollout, block, cell)
    else:
        state = memory.states[cell.block]
    rule = rollout.grid.rule
    if (which := rollout.lowered.get(cell.step)) is not None:
        lowered = with_less_noise(getattr(state, which), state.x0, rollout.share(cell.step))
        return lowered.detach(), rollout.lowered_level(cell.step)
    latent, level = getattr(state, rule.state), rule.level(cell.step, rollout.clean)
    if level == rollout.clean and rule.state == "x0" and (noise := rollout.conventions.context_noise):
        noisy = add_noise(latent, rollout.noise(Cell(cell.block, rollout.clean)), torch.tensor(noise))
        return noisy.detach(), rollout.clean + 1
    return latent.detach(), level


def _context_row(grid: Grid, cell: Cell) -> Row:
    """The row of a pass that writes the context of a block after ``cell``."""
    if grid.writes(cell.step):
        return Row(cell.block, grid.cache(cell.step))
    return Row(cell.block, cell.step + 1, leave=cell.step)  # as if by denoising the next step
