"""The teachers' samplers against Euler's method written out."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_denoiser

from hiar.grid import make_grid
from hiar.models.attention import BlockCausal
from hiar.rollout.ode import causal_ode_states, ode_states
from hiar.schedule import step_sigmas


@torch.no_grad()
def test_states_are_those_of_euler_s_method_under_guidance() -> None:
    random = torch.Generator().manual_seed(0)
    noise, text = torch.randn(2, 3, 4, 4, 4, generator=random), torch.randn(2, 5, 8, generator=random)
    no_text, sigmas, model = (
        torch.randn(1, 5, 8, generator=random).expand(2, -1, -1),
        step_sigmas(4, 3.0),
        tiny_denoiser(),
    )
    states = list(ode_states(model, noise, sigmas, text, no_text, guidance=2.5))
    assert len(states) == 5
    x = noise
    for j in range(4):
        torch.testing.assert_close(states[j], x, rtol=1e-4, atol=1e-4)
        level = 1000 * sigmas[j].expand(2)
        conditional, unconditional = (
            model.transformer(x, level, words, return_dict=False)[0] for words in (text, no_text)
        )
        x = x + (sigmas[j + 1] - sigmas[j]) * (unconditional + 2.5 * (conditional - unconditional))
    torch.testing.assert_close(states[4], x, rtol=1e-4, atol=1e-4)
    assert not any(state.requires_grad for state in states)


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_causal_teacher_solves_each_block_after_the_ends_of_earlier_ones(window: int) -> None:
    """Compared with forwards on the whole clip so far, with and without text, after the same clean blocks."""
    random = torch.Generator().manual_seed(0)
    noise, text = torch.randn(2, 3, 6, 4, 6, generator=random), torch.randn(2, 5, 8, generator=random)
    no_text, sigmas, model = (
        torch.randn(1, 5, 8, generator=random).expand(2, -1, -1),
        step_sigmas(3, 3.0),
        tiny_denoiser(),
    )
    grid = make_grid("finished", blocks=3, steps=3, window=window)
    states = causal_ode_states(model, noise, sigmas, text, no_text, 2.5, grid)
    assert states.shape == (2, 4, *noise.shape[1:])
    done = noise[:, :, :0]
    for n in range(3):
        x = noise[:, :, 2 * n : 2 * n + 2]
        for j in range(4):
            torch.testing.assert_close(states[:, j, :, 2 * n : 2 * n + 2], x, rtol=1e-4, atol=1e-4)
            if j == 3:
                break
            clip = torch.cat([done, x], dim=2)
            levels = torch.cat([torch.zeros(2, 2 * n), sigmas[j].expand(2, 2)], dim=1)
            conditional, unconditional = (
                (x - model(clip, levels, words, BlockCausal(2, window))[:, :, -2:]) / sigmas[j]
                for words in (text, no_text)
            )
            x = x + (sigmas[j + 1] - sigmas[j]) * (unconditional + 2.5 * (conditional - unconditional))
        done = torch.cat([done, x], dim=2)
