"""Flow matching, ODE regression and forward KL against their formulas, and how their levels are drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_denoiser

from hiar.losses.flow import bell_weights, flow_matching, stratified_sigmas, velocity_error
from hiar.losses.forward_kl import forward_kl
from hiar.losses.regression import block_levels, ode_regression
from hiar.models.attention import Bidirectional, BlockCausal
from hiar.schedule import expand, step_sigmas
from hiar.stages.pairs import at_levels

RANDOM = torch.Generator().manual_seed(0)
STATES = torch.randn(2, 4, 3, 6, 4, 4, generator=RANDOM)  # 2 trajectories of 4 levels, 6 frames
TEXT = torch.randn(2, 5, 8, generator=RANDOM)
SIGMAS = step_sigmas(3, 5.0)
CAUSAL = BlockCausal(block=2, window=3)


@torch.no_grad()
def test_flow_matching_is_the_velocitys_error() -> None:
    model = tiny_denoiser("flow")
    x0, noise, sigma = STATES[:, 0], STATES[:, 1], torch.tensor([0.3, 0.9])
    level = expand(sigma, x0)
    x = (1 - level) * x0 + level * noise
    velocity = model.transformer(x, 1000 * sigma, TEXT, return_dict=False)[0]
    expected = (velocity - (noise - x0)).square().mean()
    loss = flow_matching(model, x0, noise, sigma, TEXT, Bidirectional(), floor=0.01)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


@torch.no_grad()
def test_levels_below_the_floor_are_weighted_like_the_floor() -> None:
    model = tiny_denoiser("flow")
    x0, noise, sigma = STATES[:, 0], STATES[:, 1], torch.tensor([0.02, 0.9])
    level = expand(sigma, x0)
    velocity = model.transformer((1 - level) * x0 + level * noise, 1000 * sigma, TEXT, return_dict=False)[0]
    error = (velocity - (noise - x0)).square().mean(dim=(1, 2, 3, 4))
    for floor, weight in ((0.0, 1.0), (0.01, 1.0), (0.1, 0.2**2), (0.2, 0.1**2)):
        loss = flow_matching(model, x0, noise, sigma, TEXT, Bidirectional(), floor)
        torch.testing.assert_close(loss, (weight * error[0] + error[1]) / 2, rtol=1e-4, atol=0)


@torch.no_grad()
def test_flow_matching_sees_the_attention_it_is_given() -> None:
    model, sigma = tiny_denoiser("flow"), torch.tensor([0.3, 0.9])
    losses = [flow_matching(model, STATES[:, 0], STATES[:, 1], sigma, TEXT, a, 0.0) for a in (Bidirectional(), CAUSAL)]
    assert not torch.isclose(*losses, rtol=1e-5)


def test_velocity_error_is_the_x0_error_divided_by_the_level() -> None:
    x0_hat, x0 = torch.tensor([[2.0, 0.0], [1.0, 5.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    error = velocity_error(x0_hat, x0, torch.tensor([[0.1], [0.8]]), floor=0.5)
    assert error.item() == pytest.approx(((1 / 0.5) ** 2 + (4 / 0.8) ** 2) / 4)


def test_bell_weights_are_those_of_causal_forcings_schedule() -> None:
    """Its 1000 levels of shift 5, whose weights have mean 1: most at a half, none at pure noise."""
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    levels = 5 * t / (1 + 4 * t)
    weights = bell_weights(levels, 5.0)
    bell = (-2 * (levels - 0.5) ** 2).exp()
    torch.testing.assert_close(weights, (bell - bell[-1]) * 1000 / (bell - bell[-1]).sum())
    assert weights[-1] == pytest.approx(0, abs=1e-6)
    half, high = bell_weights(torch.tensor([0.5, 5 / 6]), 5.0).tolist()
    assert (round(half, 1), round(high, 1)) == (2.1, 1.0)
    assert bell_weights(torch.tensor([0.5]), 1.0).item() < half  # even levels are near a half more often


def test_training_levels_cover_every_stratum() -> None:
    sigma = stratified_sigmas(10, 1.0, np.random.default_rng(1))
    assert sigma.dtype == torch.float32
    assert sorted((10 * sigma).int().tolist()) == list(range(10))
    assert not torch.equal(sigma, sigma.sort().values)
    within = torch.cat([10 * stratified_sigmas(10, 1.0, np.random.default_rng(n)) % 1 for n in range(200)])
    assert within.mean().item() == pytest.approx(0.5, abs=0.03)  # uniform within its stratum
    assert within.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_training_levels_are_warped_by_the_shift() -> None:
    even, shifted = (stratified_sigmas(10, shift, np.random.default_rng(1)) for shift in (1.0, 3.0))
    torch.testing.assert_close(shifted, 3 * even / (1 + 2 * even))


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_forward_kl_is_the_papers_formula(steps: int) -> None:
    """Eq. 10-11, written out with the network's own velocity."""
    model = tiny_denoiser("flow")
    expected = torch.zeros(())
    for i in range(steps):
        velocity = model.transformer(STATES[:, i], 1000 * SIGMAS[i].expand(2), TEXT, return_dict=False)[0]
        slope = (STATES[:, i + 1] - STATES[:, i]) / (SIGMAS[i + 1] - SIGMAS[i])
        expected = expected + (velocity - slope).square().mean() / steps
    loss = forward_kl(model, STATES, SIGMAS, steps, TEXT, Bidirectional())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


@torch.no_grad()
def test_forward_kl_sees_the_attention_it_is_given() -> None:
    model = tiny_denoiser()
    bidirectional = forward_kl(model, STATES, SIGMAS, 1, TEXT, Bidirectional())
    causal = forward_kl(model, STATES, SIGMAS, 1, TEXT, CAUSAL)
    assert not torch.isclose(bidirectional, causal, rtol=1e-5)


def regression_inputs(levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first trajectories with each block at its level, their clean ends, and the blocks' sigmas."""
    rows = torch.arange(len(levels))
    return at_levels(STATES, rows, levels, STATES.shape[3] // levels.shape[1]), STATES[rows, -1], SIGMAS[levels]


@torch.no_grad()
def test_regression_shows_each_block_at_its_level_and_scores_the_noisy_ones() -> None:
    model = tiny_denoiser("x0")
    levels = torch.tensor([[0, 3, 1], [2, 2, 3]])
    x = torch.stack(
        [torch.cat([STATES[b, levels[b, n], :, 2 * n : 2 * n + 2] for n in range(3)], dim=1) for b in range(2)]
    )
    sigma = SIGMAS[levels].repeat_interleave(2, dim=1)
    error = ((model(x, sigma, TEXT, CAUSAL) - STATES[:, -1]) / expand(sigma, x).clamp(min=0.2)).square()
    expected = torch.cat([error[b, :, 2 * n : 2 * n + 2] for b, n in ((0, 0), (0, 2), (1, 0), (1, 1))]).mean()
    loss = ode_regression(model, *regression_inputs(levels), TEXT, CAUSAL, floor=0.2)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


@torch.no_grad()
def test_regression_scores_a_single_noisy_frame_in_full() -> None:
    model, alone = tiny_denoiser("x0"), BlockCausal(block=1, window=6)
    levels = torch.full((1, 6), 3)
    levels[0, 4] = 1
    x = STATES[:1, 3].clone()
    x[:, :, 4] = STATES[:1, 1, :, 4]
    seen = model(x, SIGMAS[levels], TEXT[:1], alone)[:, :, 4]
    expected = ((seen - STATES[:1, 3, :, 4]) / SIGMAS[1]).square().mean()
    loss = ode_regression(model, *regression_inputs(levels), TEXT[:1], alone, floor=0.2)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)


def test_regression_survives_an_all_clean_draw() -> None:
    levels = torch.full((2, 3), 3)
    assert ode_regression(tiny_denoiser(), *regression_inputs(levels), TEXT, CAUSAL, floor=0.2) == 0


def test_levels_of_blocks_are_independent_and_cover_all() -> None:
    levels = block_levels(500, 3, 4, np.random.default_rng(0))
    assert levels.shape == (500, 3)
    assert levels.unique().tolist() == [0, 1, 2, 3]
    assert abs(torch.corrcoef(levels.float().T)[0, 1]) < 0.1
