"""Losses of causal initialisations: teacher forcing and causal consistency against their equations written out."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_denoiser
from torch import Tensor

from hiar.losses.consistency import causal_consistency
from hiar.losses.regression import forced_regression
from hiar.losses.teacher_forcing import forced_flow_matching
from hiar.models.attention import BlockCausal, TeacherForced
from hiar.models.denoiser import Denoiser, teacher_forced
from hiar.schedule import step_sigmas

RANDOM = torch.Generator().manual_seed(0)
CLEAN, NOISE, OTHER = torch.randn(3, 2, 3, 6, 4, 4, generator=RANDOM)  # 2 videos of 3 blocks of 2 frames
TEXT, NOTHING = torch.randn(2, 2, 5, 8, generator=RANDOM)
SIGMAS = step_sigmas(4, 3.0)


def after_clean_blocks(model: Denoiser, x: Tensor, sigma: Tensor, text: Tensor, window: int) -> Tensor:
    """x0 of each block of ``x`` at ``sigma`` (B, blocks), each by its own causal pass after clean earlier blocks."""
    seen = []
    for n in range(3):
        block = slice(2 * n, 2 * n + 2)
        clip = torch.cat([CLEAN[:, :, : 2 * n], x[:, :, block]], dim=2)
        levels = torch.cat([torch.zeros(2, 2 * n), sigma[:, n : n + 1].expand(2, 2)], dim=1)
        seen.append(model(clip, levels, text, BlockCausal(2, window))[:, :, block])
    return torch.cat(seen, dim=2)


def per_frame(sigma: Tensor) -> Tensor:
    return sigma.repeat_interleave(2, dim=1)[:, None, :, None, None]


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("coordinates", [False, True])
def test_one_teacher_forced_pass_equals_a_causal_pass_per_block(window: int, coordinates: bool) -> None:
    model = tiny_denoiser("flow", coordinates)
    sigma = torch.tensor([[0.9, 0.5, 0.3], [0.1, 0.7, 1.0]])
    forced = teacher_forced(
        lambda x, s: model(x, s, TEXT, TeacherForced(2, window)), CLEAN, OTHER, sigma.repeat_interleave(2, 1)
    )
    torch.testing.assert_close(forced, after_clean_blocks(model, OTHER, sigma, TEXT, window), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_teacher_forcing_is_the_velocity_error_after_clean_blocks() -> None:
    model, sigma = tiny_denoiser("flow"), torch.tensor([[0.9, 0.5, 0.3], [0.1, 0.7, 1.0]])
    x = (1 - per_frame(sigma)) * CLEAN + per_frame(sigma) * NOISE
    velocity = (x - after_clean_blocks(model, x, sigma, TEXT, 2)) / per_frame(sigma)
    error = (velocity - (NOISE - CLEAN)).square()
    attention = TeacherForced(2, 2)
    loss = forced_flow_matching(model, CLEAN, NOISE, sigma, TEXT, attention, floor=0.05)
    torch.testing.assert_close(loss, error.mean(), rtol=1e-4, atol=0)
    weight = (per_frame(sigma) / per_frame(sigma).clamp(min=0.6)).square()
    floored = forced_flow_matching(model, CLEAN, NOISE, sigma, TEXT, attention, floor=0.6)
    torch.testing.assert_close(floored, (weight * error).mean(), rtol=1e-4, atol=0)
    weights = torch.tensor([[1.0, 0.0, 2.0], [0.5, 3.0, 0.0]])
    weighted = forced_flow_matching(model, CLEAN, NOISE, sigma, TEXT, attention, 0.05, weights)
    torch.testing.assert_close(weighted, (per_frame(weights) * error).mean(), rtol=1e-4, atol=0)


@torch.no_grad()
def test_forced_regression_is_the_x0_error_after_clean_blocks() -> None:
    """The target is the trajectory's end, which is not the clip."""
    model, sigma = tiny_denoiser("flow"), torch.tensor([[0.9, 0.5, 0.3], [0.1, 0.7, 1.0]])
    error = (after_clean_blocks(model, OTHER, sigma, TEXT, 2) - NOISE).square()
    attention = TeacherForced(2, 2)
    loss = forced_regression(model, OTHER, NOISE, CLEAN, sigma, TEXT, attention, floor=1.0)
    torch.testing.assert_close(loss, error.mean(), rtol=1e-4, atol=0)
    floored = forced_regression(model, OTHER, NOISE, CLEAN, sigma, TEXT, attention, floor=0.6)
    weight = 1 / per_frame(sigma).clamp(min=0.6).square()
    torch.testing.assert_close(floored, (weight * error).mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("prediction", ["flow", "x0"])
def test_consistency_compares_both_ends_of_one_teacher_step(prediction: str) -> None:
    """Three different networks, all levels; at the last one, the target is the teacher's step to clean latents."""
    student, average, teacher = (tiny_denoiser(prediction, seed=seed) for seed in (1, 2, 3))
    levels = torch.tensor([[0, 1, 2], [3, 2, 0]])
    sigma, after = per_frame(SIGMAS[levels]), per_frame(SIGMAS[levels + 1])
    x = (1 - sigma) * CLEAN + sigma * NOISE
    with torch.no_grad():
        cond, uncond = (after_clean_blocks(teacher, x, SIGMAS[levels], words, 2) for words in (TEXT, NOTHING))
        velocity = (x - (uncond + 2.5 * (cond - uncond))) / sigma
        x_after = x + (after - sigma) * velocity
        target = after_clean_blocks(average, x_after, SIGMAS[levels + 1], TEXT, 2)
        target[1, :, :2] = x_after[1, :, :2]
    expected = (after_clean_blocks(student, x, SIGMAS[levels], TEXT, 2) - target).square().mean()
    loss = causal_consistency(
        student, average, teacher, CLEAN, NOISE, SIGMAS, levels, TEXT, NOTHING, 2.5, TeacherForced(2, 2)
    )
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    loss.backward()
    gradient = torch.autograd.grad(expected, student.transformer.proj_out.weight)[0]
    torch.testing.assert_close(student.transformer.proj_out.weight.grad, gradient, rtol=1e-3, atol=1e-5)
    assert not any(p.grad is not None for network in (average, teacher) for p in network.parameters())
