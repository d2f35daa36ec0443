"""The teacher's sampler, against Euler's method written out."""

from __future__ import annotations

import torch
from tiny import tiny_denoiser

from hiar.rollout.ode import ode_states
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
