"""Attention modes: equal to diffusers' own, to each other, and causal."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import relative_error, tiny_denoiser

from hiar.models.attention import Bidirectional, BlockCausal, Cached, KVCache

FRAMES, BLOCK = 8, 2


def inputs(frames: int = FRAMES, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, frames, 4, 4, generator=random)
    sigma = torch.rand(batch, frames // BLOCK, generator=random).repeat_interleave(BLOCK, dim=1)
    return x, sigma, torch.randn(batch, 5, 8, generator=random)


@torch.no_grad()
def test_bidirectional_is_diffusers_own_forward() -> None:
    denoiser = tiny_denoiser()
    x, _, text = inputs()
    own = copy.deepcopy(denoiser.transformer)
    plain = type(own).from_config(own.config)
    plain.load_state_dict(own.state_dict())
    sigma = torch.tensor([0.3, 0.9])
    velocity = plain(x, 1000 * sigma, text, return_dict=False)[0]
    x0 = denoiser(x, sigma, text, Bidirectional())
    assert relative_error(x0, x - sigma.view(-1, 1, 1, 1, 1) * velocity) < 1e-5
    assert relative_error(denoiser.transformer(x, 1000 * sigma, text, return_dict=False)[0], velocity) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("prediction", ["flow", "x0"])
def test_one_block_wide_mask_is_bidirectional(prediction: str, coordinates: bool) -> None:
    denoiser = tiny_denoiser(prediction, coordinates)
    x, sigma, text = inputs()
    opened = denoiser(x, sigma, text, BlockCausal(block=FRAMES, window=1))
    assert relative_error(opened, denoiser(x, sigma, text, Bidirectional())) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_cached_is_masked(window: int) -> None:
    """Block by block with a sliding cache = the whole sequence under the mask, the window sliding included."""
    denoiser = tiny_denoiser()
    x, sigma, text = inputs(frames=12)
    masked = denoiser(x, sigma, text, BlockCausal(BLOCK, window))
    cache, blocks = KVCache(), []
    for n in range(6):
        frames = slice(n * BLOCK, (n + 1) * BLOCK)
        blocks.append(denoiser(x[:, :, frames], sigma[:, frames], text, Cached(cache, write=n)))
        cache.keep(list(range(n + 2 - window, n + 1)))
    assert relative_error(torch.cat(blocks, dim=2), masked) < 1e-5


def test_later_blocks_have_no_influence_at_all() -> None:
    denoiser = tiny_denoiser()
    x, sigma, text = inputs()
    attention = BlockCausal(BLOCK, window=3)
    with torch.no_grad():
        before = denoiser(x, sigma, text, attention)
        changed = x.clone()
        changed[:, :, 2 * BLOCK :] += 10
        after = denoiser(changed, sigma, text, attention)
    assert torch.equal(before[:, :, : 2 * BLOCK], after[:, :, : 2 * BLOCK])
    assert not torch.equal(before[:, :, 2 * BLOCK :], after[:, :, 2 * BLOCK :])
    x.requires_grad_()
    denoiser(x, sigma, text, attention)[:, :, : 2 * BLOCK].sum().backward()
    assert x.grad is not None
    assert x.grad[:, :, 2 * BLOCK :].abs().max() == 0


def test_frames_out_of_the_window_have_no_direct_influence() -> None:
    """With one layer, a block sees its window and nothing before."""
    denoiser = tiny_denoiser()
    del denoiser.transformer.blocks[1]
    x, sigma, text = inputs()
    x.requires_grad_()
    denoiser(x, sigma, text, BlockCausal(BLOCK, window=2))[:, :, 3 * BLOCK :].sum().backward()
    assert x.grad is not None
    assert x.grad[:, :, : 2 * BLOCK].abs().max() == 0
    assert x.grad[:, :, 2 * BLOCK : 3 * BLOCK].abs().max() > 0


@torch.no_grad()
def test_attention_does_not_leak_into_the_next_forward() -> None:
    denoiser = tiny_denoiser()
    x, sigma, text = inputs()
    before = denoiser(x, sigma, text, Bidirectional())
    denoiser(x, sigma, text, BlockCausal(BLOCK, window=2))
    assert torch.equal(denoiser(x, sigma, text, Bidirectional()), before)
