"""Self-rollouts: the student generates as at inference, and is trained at one step."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from masked import last_block
from tiny import relative_error, tiny_denoiser
from torch import Tensor

from hiar.config import Context, Conventions, Order, Renoise, Schedule, Variant, Video
from hiar.grid import Cell, make_grid, walk_passes
from hiar.noise import normals
from hiar.rollout.cell import Memory, Rollout, carry_out
from hiar.rollout.walk import generate
from hiar.schedule import add_noise, step_sigmas
from hiar.training.self_rollout import SelfRollout

SHAPE, STEPS, SEED, SAMPLES = (3, 2, 4, 4), 3, 7, range(4, 6)
TEXT = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
CONVENTIONS = Conventions(given="level", sinks="turn", context_noise=0.0)
KINDS: list[tuple[Order, Context]] = [("step_first", "output"), ("step_first", "input"), ("block_first", "finished")]


def make_self_rollout(
    order: Order = "step_first",
    context: Context = "output",
    *,
    windows: int = 2,
    sinks: int = 0,
    renoise: Renoise = "sde",
) -> SelfRollout:
    return SelfRollout(
        block_shape=SHAPE,
        windows=windows,
        variant=Variant(order=order, context=context, level=1.0 if context == "output" else None, forward_kl=None),
        video=Video(frames=4, block=2, window=4, sink_blocks=sinks),
        schedule=Schedule(teacher_shift=4.0, student_shift=2.0, student_steps=STEPS, renoise=renoise),
        conventions=CONVENTIONS,
    )


def rolled_out(roll_out: SelfRollout, exit_step: int, learn: bool = False) -> tuple[Tensor, list[Tensor]]:
    """The windows, and the student's parameters."""
    student = tiny_denoiser(seed=1)
    return roll_out(student, TEXT, SEED, SAMPLES, exit_step, learn), list(student.parameters())


def video_of(windows: Tensor, per_video: int) -> Tensor:
    """The windows joined to videos again."""
    return torch.stack([torch.cat([*part], dim=1) for part in windows.split(per_video)])


@torch.no_grad()
@pytest.mark.parametrize(("order", "context"), KINDS)
@pytest.mark.parametrize("exit_step", [0, 2])
def test_windows_are_the_rollout_cut_in_time(order: Order, context: Context, exit_step: int) -> None:
    windows, _ = rolled_out(make_self_rollout(order, context, windows=3), exit_step)
    assert windows.shape == (6, 3, 4, 4, 4)
    grid = make_grid(context, blocks=6, steps=exit_step + 1, window=2)
    rollout = Rollout(grid, step_sigmas(STEPS, 2.0), SHAPE, "sde", SEED, SAMPLES, TEXT)
    video = generate(tiny_denoiser(seed=1), rollout, order)
    for n, window in enumerate(windows):
        assert torch.equal(window, video[n // 3, :, n % 3 * 4 : (n % 3 + 1) * 4])


@torch.no_grad()
@pytest.mark.parametrize(("order", "context"), KINDS)
def test_an_exit_returns_the_x0_of_a_whole_rollout_at_that_step(order: Order, context: Context) -> None:
    """At every step, including the last, where it is the video itself."""
    roll_out, seen = make_self_rollout(order, context), {}
    grid = make_grid(context, blocks=4, steps=STEPS, window=2)
    memory = Memory(tiny_denoiser(seed=1), Rollout(grid, step_sigmas(STEPS, 2.0), SHAPE, "sde", SEED, SAMPLES, TEXT))
    for step in walk_passes(grid, order):
        carry_out(memory, step)
        seen |= {cell: memory.states[cell.block].x0 for cell in step.denoise}
    # Self-Forcing's contexts are finished blocks, and an early exit finishes them early: only the first block agrees.
    blocks = 1 if context == "finished" else 4
    for exit_step in range(STEPS):
        video = video_of(rolled_out(roll_out, exit_step)[0], 2)[:, :, : 2 * blocks]
        expected = torch.cat([seen[Cell(block, exit_step)] for block in range(blocks)], dim=2)
        assert relative_error(video, expected) < 1e-5


@pytest.mark.parametrize("exit_step", [0, 1])
def test_with_shared_context_an_exit_equals_the_whole_rollout(exit_step: int) -> None:
    """Its context is left by the next step, so the steps after the exit must not be cut off."""
    windows, _ = rolled_out(make_self_rollout("block_first", "shared"), exit_step, learn=True)
    grid = make_grid("shared", blocks=4, steps=STEPS, window=2)
    memory = Memory(tiny_denoiser(seed=1), Rollout(grid, step_sigmas(STEPS, 2.0), SHAPE, "sde", SEED, SAMPLES, TEXT))
    seen = {}
    with torch.no_grad():
        for step in walk_passes(grid, "block_first"):
            carry_out(memory, step)
            seen |= {cell: memory.states[cell.block].x0 for cell in step.denoise}
    expected = torch.cat([seen[Cell(block, exit_step)] for block in range(4)], dim=2)
    assert torch.equal(video_of(windows, 2), expected)
    assert windows.requires_grad


@pytest.mark.parametrize(("order", "context"), KINDS)
@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_every_window_carries_gradients_of_its_own_exit_step_alone(
    order: Order, context: Context, exit_step: int
) -> None:
    windows, parameters = rolled_out(make_self_rollout(order, context), exit_step, learn=True)
    assert not rolled_out(make_self_rollout(order, context), exit_step)[0].requires_grad
    for window in windows:
        (grad,) = torch.autograd.grad(window.square().sum(), parameters[0], retain_graph=True)
        assert grad.abs().max() > 0
    # The first block sees no context: its whole gradient is that of one forward on the step's input.
    student = tiny_denoiser(seed=1)
    sigma, x = step_sigmas(STEPS, 2.0), noise(0, 0)
    for j in range(exit_step):
        with torch.no_grad():
            x = add_noise(last_block(student, [], sigma[j], x, sigma[j], TEXT, 2), noise(0, j + 1), sigma[j + 1])
    x0 = last_block(student, [], sigma[0], x, sigma[exit_step], TEXT, 2)
    expected = torch.autograd.grad(x0.square().sum(), list(student.parameters()))
    actual = torch.autograd.grad(windows[::2, :, :2].square().sum(), parameters)
    assert max(relative_error(a, e) for a, e in zip(actual, expected, strict=True)) < 1e-4


def noise(block: int, step: int) -> Tensor:
    return normals("rollout", SEED, SAMPLES, SHAPE, step=step, block=block)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "options", "conventions"),
    [
        (("step_first", "output"), {"renoise": "euler"}, {}),
        (("step_first", "output"), {"sinks": 1}, {}),
        (("step_first", "output"), {"sinks": 1}, {"sinks": "stay"}),
        (("block_first", "finished"), {}, {"context_noise": 0.3}),
    ],
)
def test_settings_of_the_rollout_are_passed_on(
    kind: tuple[Order, Context], options: dict[str, Any], conventions: dict[str, Any]
) -> None:
    """Also after the first window, where contexts slide: settings have the right effect, and do have one."""
    order, context = kind
    seen = make_self_rollout(order, context, windows=3, **options)
    seen = dataclasses.replace(seen, conventions=CONVENTIONS.model_copy(update=conventions))
    windows, _ = rolled_out(seen, 1)
    plain, _ = rolled_out(make_self_rollout(order, context, windows=3), 1)
    grid = make_grid(context, blocks=6, steps=2, window=2, sinks=options.get("sinks", 0))
    sigmas, renoise = step_sigmas(STEPS, 2.0), options.get("renoise", "sde")
    rollout = Rollout(grid, sigmas, SHAPE, renoise, SEED, SAMPLES, TEXT, conventions=seen.conventions)
    expected = generate(tiny_denoiser(seed=1), rollout, order)
    assert torch.equal(video_of(windows, 3), expected)
    assert not torch.allclose(windows, plain, atol=1e-3)


def test_half_precision_keeps_levels_and_latents_in_full() -> None:
    full, _ = rolled_out(make_self_rollout(), 1, learn=True)
    with torch.autocast("cpu", torch.bfloat16):
        windows, parameters = rolled_out(make_self_rollout(), 1, learn=True)
    assert windows.dtype == torch.float32
    assert not torch.equal(windows, full)
    gradients = torch.autograd.grad(windows.square().sum(), parameters)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert (windows - full).abs().mean() < 0.1 * full.abs().mean()


def test_a_drawn_level_replaces_that_of_the_variant() -> None:
    own, drawn = make_self_rollout(), make_self_rollout()
    lower = dataclasses.replace(own, variant=own.variant.model_copy(update={"level": 0.5}))
    student = tiny_denoiser()
    expected = lower(student, TEXT, SEED, SAMPLES, 1, learn=False)
    assert torch.equal(drawn(student, TEXT, SEED, SAMPLES, 1, False, 0.5), expected)
    assert not torch.allclose(own(student, TEXT, SEED, SAMPLES, 1, learn=False), expected, atol=1e-4)
