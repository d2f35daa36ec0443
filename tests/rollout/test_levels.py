"""Output context at level c (0: clean, 1: output, 2: input): the same video in every order, and the formula."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from masked import last_block
from tiny import relative_error, tiny_denoiser
from torch import Tensor

from hiar.config import Context, ContextLevel, Order, Passes, Renoise
from hiar.contexts import context_words, rule_of
from hiar.grid import make_grid
from hiar.memory.counting import imagined
from hiar.noise import normals
from hiar.rollout.cell import OURS, Rollout
from hiar.rollout.walk import generate
from hiar.schedule import euler_step, step_sigmas, with_less_noise

STEPS, BLOCK, SHAPE = 3, 2, (3, 2, 4, 4)
LEVELS: list[ContextLevel] = [0.0, 0.85, (0.8, 1.0), (1.0, 0.0), 1.4, (1.7, 0.6)]


def make_rollout(context: Context = "output", renoise: Renoise = "sde", **geometry: int) -> Rollout:
    grid = make_grid(context, blocks=6, steps=STEPS, window=3, **geometry)  # type: ignore[arg-type]
    text = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    return Rollout(grid, step_sigmas(STEPS, 5.0), SHAPE, renoise, 7, range(2), text)


def at_level(level: ContextLevel, renoise: Renoise = "sde", **geometry: int) -> Rollout:
    rollout = make_rollout("output", renoise, **geometry)
    rule = rule_of("output", level)
    return dataclasses.replace(rollout, grid=dataclasses.replace(rollout.grid, rule=rule))


@torch.no_grad()
@pytest.mark.parametrize("renoise", ["sde", "euler"])
@pytest.mark.parametrize("level", LEVELS)
def test_every_order_gives_one_video(level: ContextLevel, renoise: Renoise) -> None:
    model = tiny_denoiser()
    clip = torch.randn(2, 3, BLOCK, 4, 4, generator=torch.Generator().manual_seed(3))
    rollout = at_level(level, renoise=renoise, sinks=1, given=1)
    video = generate(model, rollout, "step_first", clip)
    for order in ("diagonal", "block_first"):
        assert torch.equal(generate(model, rollout, order, clip), video)
    fast: list[tuple[Order, Passes]] = [("step_first", "fused"), ("diagonal", "batched")]
    for order, passes in fast:
        assert relative_error(generate(model, rollout, order, clip, passes=passes), video) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("renoise", ["sde", "euler"])
@pytest.mark.parametrize("level", LEVELS)
def test_contexts_at_level_c_equal_the_formula(level: ContextLevel, renoise: Renoise) -> None:
    """Compared with a rollout without caches, with the contexts' noise written out."""
    model = tiny_denoiser()
    rollout = at_level(level, renoise=renoise)
    levels = (*level, 1.0) if isinstance(level, tuple) else (level,) * STEPS
    assert relative_error(generate(model, rollout, "step_first"), written_out(model, rollout, levels)) < 1e-5


def written_out(model: Any, rollout: Rollout, levels: tuple[float, ...]) -> Tensor:
    blocks, sigmas = range(rollout.grid.blocks or 0), rollout.sigmas

    def noise(block: int, step: int) -> Tensor:
        return normals("rollout", rollout.seed, rollout.samples, SHAPE, step=step, block=block)

    latents = [noise(n, 0) for n in blocks]
    for j, c in enumerate(levels):
        level = c * sigmas[j + 1] if c <= 1 else sigmas[j + 1] + (c - 1) * (sigmas[j] - sigmas[j + 1])
        shown, after = [], []
        for n in blocks:
            x0 = last_block(model, shown, level, latents[n], sigmas[j], rollout.text, rollout.grid.window)
            seen = (latents[n] - (1 - sigmas[j]) * x0) / sigmas[j]  # the step's input noise, according to its x0
            eps = noise(n, j + 1) if rollout.renoise == "sde" else seen
            after.append((1 - sigmas[j + 1]) * x0 + sigmas[j + 1] * eps if j + 1 < len(levels) else x0)
            shown.append((1 - level) * x0 + level * (seen if c > 1 else eps) if j + 1 < len(levels) or c > 1 else x0)
        latents = after
    return torch.cat(latents, dim=2)


@torch.no_grad()
def test_levels_0_1_and_2_are_clean_output_and_input_context() -> None:
    model = tiny_denoiser()
    contexts: tuple[Context, ...] = ("output", "clean", "input")
    hiar, clean, noisy = (generate(model, make_rollout(context), "diagonal") for context in contexts)
    assert relative_error(generate(model, at_level(2.0), "diagonal"), noisy) < 1e-6
    assert relative_error(generate(model, at_level(1.5), "diagonal"), noisy) > 1e-2
    assert relative_error(generate(model, at_level(1.5), "diagonal"), hiar) > 1e-2
    for ones in (1.0, (1.0, 1.0)):
        assert torch.equal(generate(model, at_level(ones), "diagonal"), hiar)
    for zeros in (0.0, (0.0, 0.0)):
        assert relative_error(generate(model, at_level(zeros), "diagonal"), clean) < 1e-6
    assert relative_error(clean, hiar) > 1e-2
    assert relative_error(generate(model, at_level(0.5), "diagonal"), hiar) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("level", [0.85, (1.7, 0.6)])
def test_context_noise_does_not_apply_to_contexts_at_a_level(level: ContextLevel) -> None:
    model, rollout = tiny_denoiser(), at_level(level)
    noisy = dataclasses.replace(rollout, conventions=OURS.model_copy(update={"context_noise": 0.1}))
    video = generate(model, rollout, "diagonal")
    assert relative_error(generate(model, noisy, "diagonal"), video) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("level", [0.0, (1.7, 0.6)])
def test_a_walk_runs_on_tensors_without_values(level: ContextLevel) -> None:
    """`hiar plan` walks on tensors without values, so a walk must not branch on any value."""
    with imagined():
        assert generate(tiny_denoiser(), at_level(level), "diagonal").shape == (2, 3, 6 * BLOCK, 4, 4)


@torch.no_grad()
def test_less_noise_keeps_the_noise_it_has() -> None:
    x0, eps = torch.randn(2, 1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    x = 0.4 * x0 + 0.6 * eps
    torch.testing.assert_close(with_less_noise(x, x0, 0.5), 0.7 * x0 + 0.3 * eps)
    torch.testing.assert_close(with_less_noise(x, x0, 0.5), euler_step(x, x0, torch.tensor(0.6), torch.tensor(0.3)))
    assert torch.equal(with_less_noise(x, x0, 1.0), x)
    assert torch.equal(with_less_noise(x, x0, 0.0), x0)
    assert with_less_noise(x.bfloat16(), x0.bfloat16(), 0.5).dtype == torch.bfloat16


def test_levels_in_words() -> None:
    assert context_words("clean", None) == "clean context"
    assert context_words("output", 1.0) == "output context"
    assert context_words("output", 0.85) == "output context at c = 0.85"
    assert context_words("output", (0.8, 1.0, 1.0)) == "output context at c = 0.8, 1, 1"
    assert context_words("output", (1.0, 1.0, 1.0)) == "output context"
    assert context_words("output", (0.8, 1.0, 1.5)) == "output context at c = 0.8, 1, 1.5"
