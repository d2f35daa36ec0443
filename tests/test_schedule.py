"""The paper's formulas for noise levels (Eq. 1-3)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hiar.schedule import (
    add_noise,
    euler_step,
    expand,
    solver_sigmas,
    step_sigmas,
    velocity_from_x0,
    warp,
    x0_from_velocity,
)

shifts = st.floats(0.2, 12)


def test_the_papers_student_levels() -> None:
    """S = 4, shift 5: the levels of the checkpoints that the paper refers to."""
    expected = torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0])
    torch.testing.assert_close(step_sigmas(4, 5.0), expected)


@given(shifts)
def test_warp_keeps_the_ends_and_the_order(shift: float) -> None:
    sigma = warp(torch.linspace(0, 1, 11), shift)
    assert sigma[0] == 0
    assert sigma[-1] == 1
    assert (sigma.diff() > 0).all()


@given(shifts, shifts, st.integers(1, 6), st.integers(1, 7))
def test_the_solver_visits_the_students_levels(student: float, teacher: float, steps: int, substeps: int) -> None:
    sigmas = step_sigmas(steps, student)
    levels = solver_sigmas(sigmas, substeps, teacher)
    assert len(levels) == steps * substeps + 1
    assert torch.equal(levels[::substeps], sigmas)
    assert (levels.diff() < 0).all()


@given(st.floats(0.01, 1))
def test_velocity_and_x0_are_two_views_of_one_prediction(sigma: float) -> None:
    random = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 50, generator=random, dtype=torch.float64)
    level = torch.tensor(sigma, dtype=torch.float64)
    x = add_noise(x0, noise, level)
    torch.testing.assert_close(velocity_from_x0(x, x0, level), noise - x0)
    torch.testing.assert_close(x0_from_velocity(x, noise - x0, level), x0)


def test_an_euler_step_on_a_straight_path_is_exact() -> None:
    x0, noise = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    a, b = torch.tensor(0.8), torch.tensor(0.3)
    torch.testing.assert_close(euler_step(add_noise(x0, noise, a), x0, a, b), add_noise(x0, noise, b))


@pytest.mark.parametrize("move", ["add_noise", "euler_step", "x0_from_velocity", "velocity_from_x0"])
def test_moves_of_bf16_latents_are_rounded_once(move: str) -> None:
    """The result of float32, rounded; computed in bf16, the levels themselves would be rounded too."""
    random = torch.Generator().manual_seed(0)
    x, other = (torch.randn(1000, generator=random).bfloat16() for _ in range(2))
    a, b = torch.tensor(0.9375), torch.tensor(0.8333)
    moves = {
        "add_noise": lambda x, other: add_noise(x, other, b),
        "euler_step": lambda x, other: euler_step(x, other, a, b),
        "x0_from_velocity": lambda x, other: x0_from_velocity(x, other, b),
        "velocity_from_x0": lambda x, other: velocity_from_x0(x, other, b),
    }
    moved = moves[move](x, other)
    assert moved.dtype == torch.bfloat16
    assert torch.equal(moved, moves[move](x.float(), other.float()).bfloat16())


@given(shifts, st.floats(0, 1))
def test_warp_is_the_papers_formula(shift: float, t: float) -> None:
    sigma = warp(torch.tensor(t, dtype=torch.float64), shift).item()
    assert sigma == pytest.approx(shift * t / (1 + (shift - 1) * t), abs=1e-12)


def test_solver_steps_are_even_in_the_teachers_t() -> None:
    sigmas, shift = step_sigmas(2, 3.0), 5.0
    levels = solver_sigmas(sigmas, 4, shift).double()
    t = levels / (shift - (shift - 1) * levels)
    for part in (t[:5], t[4:]):
        torch.testing.assert_close(part.diff(), ((part[-1] - part[0]) / 4).expand(4), atol=1e-6, rtol=0)


def test_an_euler_step_follows_the_velocity() -> None:
    """Eq. 3: x + (sigma' - sigma) v, where the network's x0 is x - sigma v."""
    x, velocity = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    a, b = torch.tensor(0.8), torch.tensor(0.3)
    torch.testing.assert_close(euler_step(x, x - a * velocity, a, b), x - 0.5 * velocity)


def test_levels_per_clip_and_per_frame_broadcast_against_latents() -> None:
    latents, sigma = torch.zeros(2, 3, 4, 5, 6), torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    spread = expand(sigma, latents).expand_as(latents)
    assert torch.equal(spread, torch.stack([s.view(1, 4, 1, 1).expand(3, 4, 5, 6) for s in sigma]))
    assert torch.equal(expand(sigma[:, 0], latents), sigma[:, :1, None, None, None])


def test_levels_keep_their_precision_beside_bf16_latents() -> None:
    sigma = expand(torch.tensor([0.9375, 0.8333]), torch.zeros(2, 3, 4, 5, 6, dtype=torch.bfloat16))
    assert sigma.dtype == torch.float32
    assert sigma.shape == (2, 1, 1, 1, 1)
