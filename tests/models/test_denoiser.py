"""The denoiser: the meaning of its output, its inputs of levels and coordinates, and guidance."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_denoiser
from torch import Tensor

from hiar.config import Model
from hiar.models.attention import Attention, Bidirectional, BlockCausal
from hiar.models.denoiser import build_denoiser, coordinates, guided_x0
from hiar.noise import seeded

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 4, 4, 6, generator=RANDOM)
TEXT = torch.randn(2, 5, 8, generator=RANDOM)
SIGMA = torch.tensor([0.3, 0.9])
MODEL = Model(
    layers=2,
    heads=2,
    head_dim=12,
    ffn=32,
    freq_dim=16,
    patch=1,
    prediction="x0",
    coordinates=True,
    text_dim=8,
    text_length=5,
)


class Analytic:
    """A network with known x0: 0.1 x plus the level and the text's mean; it records the batch size of each forward."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, text: Tensor, attention: Attention) -> Tensor:
        assert attention == Bidirectional()
        self.seen.append(len(x))
        return 0.1 * x + (sigma + text.mean(dim=(1, 2))).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("guidance", [0.0, 0.7, 1.0, 3.0])
def test_guidance_extrapolates_from_unconditional_through_conditional(guidance: float) -> None:
    network, no_text = Analytic(), torch.randn(1, 5, 8, generator=RANDOM).expand(2, -1, -1)
    conditional = 0.1 * X + (SIGMA + TEXT.mean(dim=(1, 2))).view(-1, 1, 1, 1, 1)
    unconditional = 0.1 * X + (SIGMA + no_text.mean(dim=(1, 2))).view(-1, 1, 1, 1, 1)
    expected = unconditional + guidance * (conditional - unconditional)
    guided = guided_x0(network, X, SIGMA, TEXT, no_text, guidance)  # type: ignore[arg-type]
    torch.testing.assert_close(guided, expected)
    assert network.seen == ([2] if guidance == 1 else [4])  # one forward; at guidance 1, of conditional videos alone


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["flow", "x0"])
def test_levels_become_wans_timesteps_per_clip_or_per_frame(prediction: str) -> None:
    network = tiny_denoiser(prediction)
    out = network.transformer(X, 1000 * SIGMA, TEXT, return_dict=False)[0]
    expected = out if prediction == "x0" else X - SIGMA.view(-1, 1, 1, 1, 1) * out
    torch.testing.assert_close(network(X, SIGMA, TEXT, Bidirectional()), expected)
    frames = SIGMA[:, None].expand(2, 4)
    torch.testing.assert_close(network(X, frames, TEXT, Bidirectional()), expected, rtol=1e-4, atol=1e-4)
    mixed = torch.cat([frames[:, :2], 0.5 * frames[:, 2:]], dim=1)
    timesteps = (1000 * mixed).repeat_interleave(6, dim=1)  # six tokens per frame
    out = network.transformer(X, timesteps, TEXT, return_dict=False)[0]
    expected = out if prediction == "x0" else X - mixed[:, None, :, None, None] * out
    torch.testing.assert_close(network(X, mixed, TEXT, Bidirectional()), expected)


@torch.no_grad()
def test_coordinates_are_appended_to_the_latents_channels() -> None:
    network = tiny_denoiser("x0", coordinates=True)
    assert network.channels == 3
    rows = torch.tensor([-1, -1 / 3, 1 / 3, 1])[:, None].expand(4, 6)
    columns = torch.tensor([-1, -0.6, -0.2, 0.2, 0.6, 1])[None].expand(4, 6)
    place = torch.stack([rows, columns])[None, :, None].expand(2, -1, 4, -1, -1)
    torch.testing.assert_close(coordinates(X), place)
    out = network.transformer(torch.cat([X, place], dim=1), 1000 * SIGMA, TEXT, return_dict=False)[0]
    torch.testing.assert_close(network(X, SIGMA, TEXT, Bidirectional()), out)


@torch.no_grad()
def test_a_forward_that_fails_leaves_no_plan_behind() -> None:
    network = tiny_denoiser()
    expected = network(X, SIGMA, TEXT, Bidirectional())
    with pytest.raises(RuntimeError):
        network(X, SIGMA, TEXT[:, :, :3], BlockCausal(block=2, window=1))
    assert network.positions[0].plan is None
    bare = network.transformer(X, 1000 * SIGMA, TEXT, return_dict=False)[0]
    torch.testing.assert_close(X - SIGMA.view(-1, 1, 1, 1, 1) * bare, expected)


@torch.no_grad()
def test_half_precision_leaves_wans_fp32_parameters() -> None:
    network = tiny_denoiser()
    network.cast(torch.bfloat16)
    assert network.dtype == torch.bfloat16
    kinds = {name: parameter.dtype for name, parameter in network.transformer.named_parameters()}
    whole = {name for name, kind in kinds.items() if kind == torch.float32}
    assert {
        "scale_shift_table",
        "blocks.0.scale_shift_table",
        "condition_embedder.time_embedder.linear_1.weight",
    } <= whole
    assert {"patch_embedding.weight", "blocks.1.attn1.to_q.weight", "proj_out.bias"} <= kinds.keys() - whole
    out = network(X.bfloat16(), SIGMA, TEXT.bfloat16(), Bidirectional())
    assert out.dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["flow", "x0"])
def test_under_autocast_estimates_keep_the_latents_dtype(prediction: str) -> None:
    network = tiny_denoiser(prediction)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(X, SIGMA, TEXT, Bidirectional()).dtype == torch.float32


def test_a_new_denoiser_follows_its_settings_and_seed() -> None:
    one, again, other = (build_denoiser(MODEL, 3, seed) for seed in (4, 4, 5))
    assert (one.prediction, one.coordinates, one.channels) == ("x0", True, 3)
    config = one.transformer.config
    assert (config.in_channels, config.out_channels, config.patch_size) == (5, 3, (1, 1, 1))
    assert (config.num_layers, config.num_attention_heads, config.attention_head_dim) == (2, 2, 12)
    assert (config.text_dim, config.freq_dim, config.ffn_dim) == (8, 16, 32)
    weights = [torch.cat([p.detach().flatten() for p in network.parameters()]) for network in (one, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with seeded("denoiser weights", 4):
        drawn = type(one.transformer).from_config(config)
    assert torch.equal(torch.cat([p.detach().flatten() for p in drawn.parameters()]), weights[0])
