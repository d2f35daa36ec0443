"""Activation checkpointing: gradients equal to the bit, although windows slide before layers are recomputed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_denoiser
from torch import Tensor

from hiar.config import Context, Conventions, Order, Passes, Schedule, Variant, Video
from hiar.grid import make_grid
from hiar.models.attention import Attention, Bidirectional, BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import generate, walk
from hiar.schedule import step_sigmas
from hiar.training.self_rollout import SelfRollout

STEPS, BLOCKS, SHAPE = 3, 8, (3, 2, 4, 4)
TEXT = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
WALKS: list[tuple[Order, Context, Passes]] = [
    ("step_first", "output", "separate"),
    ("step_first", "input", "separate"),
    ("step_first", "clean", "separate"),
    ("step_first", "output", "fused"),
    ("diagonal", "clean", "batched"),
    ("block_first", "finished", "separate"),
    ("block_first", "finished", "fused"),
    ("block_first", "output", "separate"),
    ("block_first", "shared", "separate"),
    ("diagonal", "shared", "batched"),
]


def student(checkpointing: bool) -> Denoiser:
    return tiny_denoiser(coordinates=True).train().checkpoint(checkpointing)


def kept_bytes(checkpointing: bool) -> int:
    """Bytes that a recorded rollout keeps for backward, without weights."""
    model, kept = student(checkpointing), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    grid = make_grid("output", blocks=BLOCKS, steps=STEPS, window=4)
    rollout = Rollout(grid, step_sigmas(STEPS, 5.0), SHAPE, "sde", 7, range(2), TEXT)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        video = generate(model, rollout, "step_first", grad_step=STEPS - 1)
    assert video.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


def gradients(loss: Tensor, model: Denoiser) -> Tensor:
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def rollout_gradients(checkpointing: bool, order: Order, context: Context, passes: Passes, exit_step: int, **grid: Any):
    model = student(checkpointing)
    steps = STEPS if context == "shared" else exit_step + 1
    planned = make_grid(context, blocks=BLOCKS, steps=steps, **grid)
    rollout = Rollout(planned, step_sigmas(STEPS, 5.0), SHAPE, "sde", 7, range(2), TEXT)
    video = generate(model, rollout, order, passes=passes, grad_step=exit_step, exit_step=exit_step)
    return gradients(video.square().sum(), model)


@pytest.mark.parametrize(
    ("order", "context", "passes", "sinks"),
    [*((*kind, 0) for kind in WALKS), (*WALKS[0], 1), (*WALKS[4], 1), (*WALKS[9], 2)],
)
def test_rollout_gradients_are_bitwise_equal_with_and_without_checkpointing(
    order: Order, context: Context, passes: Passes, sinks: int
) -> None:
    for exit_step in range(STEPS):
        plain, again = (
            rollout_gradients(one, order, context, passes, exit_step, window=4, sinks=sinks) for one in (False, True)
        )
        assert plain.abs().max() > 0
        assert torch.equal(again, plain)


def test_a_checkpointed_rollout_keeps_less_than_a_third_for_backward() -> None:
    assert kept_bytes(True) < kept_bytes(False) / 3


@pytest.mark.parametrize(("order", "context"), [("step_first", "output"), ("block_first", "finished")])
def test_gradients_over_several_windows_are_bitwise_equal(order: Order, context: Context) -> None:
    roll_out = SelfRollout(
        block_shape=SHAPE,
        windows=3,
        variant=Variant(order=order, context=context, level=1.0 if context == "output" else None, forward_kl=None),
        video=Video(frames=4, block=2, window=4, sink_blocks=1),
        schedule=Schedule(teacher_shift=4.0, student_shift=2.0, student_steps=STEPS, renoise="sde"),
        conventions=Conventions(given="level", sinks="stay", context_noise=0.0),
    )
    for exit_step in range(STEPS):
        found = []
        for checkpointing in (False, True):
            model = student(checkpointing)
            found.append(gradients(roll_out(model, TEXT, 7, range(2), exit_step, learn=True).square().sum(), model))
        assert torch.equal(*found)


def test_gradients_taken_during_the_walk_are_bitwise_equal() -> None:
    """Recomputation leaves nothing behind that later blocks would see."""
    found = []
    for checkpointing in (False, True):
        model = student(checkpointing)
        grid = make_grid("finished", blocks=BLOCKS, steps=STEPS, window=3)
        rollout = Rollout(grid, step_sigmas(STEPS, 5.0), SHAPE, "sde", 7, range(2), TEXT)
        videos = []
        for _, block in walk(model, rollout, "block_first", grad_step=STEPS - 1):
            block.square().sum().backward(retain_graph=True)  # blocks share the prompt's keys
            videos.append(block.detach())
        found.append(
            torch.cat([*(v.flatten() for v in videos), *(p.grad.flatten() for p in parameters_with_gradients(model))])
        )
    assert torch.equal(*found)


def parameters_with_gradients(model: Denoiser) -> list[Any]:
    return [parameter for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("attention", [Bidirectional(), BlockCausal(2, 2)])
def test_gradients_of_whole_clips_are_bitwise_equal(attention: Attention) -> None:
    x = torch.randn(2, 3, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for checkpointing in (False, True):
        model = student(checkpointing)
        found.append(gradients(model(x, torch.tensor([0.3, 0.9]), TEXT, attention).square().sum(), model))
    assert torch.equal(*found)
