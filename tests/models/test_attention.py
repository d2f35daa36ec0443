"""Attention modes: equal to diffusers' own, to each other, and causal."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from tiny import live_tensor_bytes, relative_error, tiny_denoiser

from hiar.models.attention import Bidirectional, BlockCausal, Row
from hiar.models.blockwise import NEAR, Places, condition, forward_blocks
from hiar.models.denoiser import Denoiser
from hiar.models.rings import RecordedRings, Rings
from hiar.models.rotary import rotate, rotations

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
    original = copy.deepcopy(denoiser.transformer)
    plain = type(original).from_config(original.config)
    plain.load_state_dict(original.state_dict())
    sigma = torch.tensor([0.3, 0.9])
    velocity = plain(x, 1000 * sigma, text, return_dict=False)[0]
    x0 = denoiser(x, sigma, text, Bidirectional())
    assert relative_error(x0, x - sigma.view(-1, 1, 1, 1, 1) * velocity) < 1e-5
    assert relative_error(denoiser.transformer(x, 1000 * sigma, text, return_dict=False)[0], velocity) < 1e-5


@torch.no_grad()
def test_levels_keep_their_precision_beside_text_in_bf16() -> None:
    """Two levels that round to the same bf16 number."""
    denoiser = tiny_denoiser()
    denoiser.cast(torch.bfloat16)
    sigmas = torch.tensor([0.757, 0.7575])
    conditioning = condition(denoiser, inputs()[2].bfloat16(), sigmas)
    assert torch.equal(conditioning.sigmas, sigmas)
    assert not torch.equal(*conditioning.time)


def test_gradients_reach_a_blocks_own_keys_and_not_those_of_its_context() -> None:
    rings, shape = RecordedRings(window=2), (1, 3, 2, 4)
    context, own = ([torch.ones(shape, requires_grad=True) for _ in range(2)] for _ in range(2))
    for show in (rings.show, rings.put):  # a block that is denoised, and one that is stored as context for later ones
        show(0, 0, 0, *context, *([None] if show == rings.show else []))  # type: ignore[operator]
        keys, values = rings.show(0, 0, 1, *own, None)
        assert keys.shape[1] == values.shape[1] == 6
        (keys.sum() + values.sum()).backward()
        assert all(one.grad is None for one in context)
        assert all(one.grad is not None for one in own)


@torch.no_grad()
def test_one_network_handles_clips_of_changing_length_and_size() -> None:
    """Also two with the same number of tokens, and when called as in diffusers, without an attention mode."""
    used = tiny_denoiser()
    random = torch.Generator().manual_seed(4)
    text, sigma = torch.randn(1, 5, 8, generator=random), torch.tensor([0.5])

    def bare(network: Denoiser, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = network.transformer(x, 1000 * sigma, text, return_dict=False)[0]
        return out

    def whole(network: Denoiser, x: torch.Tensor) -> torch.Tensor:
        return network(x, sigma, text, Bidirectional())

    for forward in (bare, whole):
        for shape in ((4, 4, 8), (4, 8, 4), (8, 4, 4), (2, 4, 8)):
            x = torch.randn(1, 3, *shape, generator=random)
            assert torch.equal(forward(used, x), forward(tiny_denoiser(), x))


@torch.no_grad()
@pytest.mark.parametrize("coordinates", [False, True])
@pytest.mark.parametrize("prediction", ["flow", "x0"])
def test_one_block_wide_mask_is_bidirectional(prediction: str, coordinates: bool) -> None:
    denoiser = tiny_denoiser(prediction, coordinates)
    x, sigma, text = inputs()
    opened = denoiser(x, sigma, text, BlockCausal(block=FRAMES, window=1))
    assert relative_error(opened, denoiser(x, sigma, text, Bidirectional())) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("prediction", "coordinates"), [("flow", False), ("x0", True)])
@pytest.mark.parametrize("window", [1, 2, 3, 4])
def test_blockwise_forwards_with_rings_equal_one_masked_forward(
    window: int, prediction: str, coordinates: bool
) -> None:
    """Also where the window slides."""
    denoiser = tiny_denoiser(prediction, coordinates)
    x, _, text = inputs(frames=14)
    levels = torch.linspace(0.1, 0.9, 7)
    sigma = levels.repeat_interleave(BLOCK).expand(2, -1)
    masked = denoiser(x, sigma, text, BlockCausal(BLOCK, window))
    rings, places = Rings(1, window), Places(denoiser, (BLOCK, 2, 2), x.device)
    conditioning = condition(denoiser, text, levels)
    blocks = [
        forward_blocks(
            denoiser,
            x[:, None, :, n * BLOCK : (n + 1) * BLOCK],
            [Row(n, 0)],
            [n],
            [conditioning],
            rings,
            places,
        )[:, 0]
        for n in range(7)
    ]
    assert relative_error(torch.cat(blocks, dim=2), masked) < 1e-5


@torch.no_grad()
def test_positions_are_those_of_each_clips_size() -> None:
    """One network may see clips of several lengths and shapes, one after the other."""
    used, (x, sigma, text) = tiny_denoiser(), inputs()
    for one in (x, x[:, :, :6], x[..., :2], x[..., :2].transpose(3, 4), x):
        fresh = tiny_denoiser()
        levels = sigma[:, : one.shape[2]]
        assert torch.equal(*(network(one, levels, text, BlockCausal(BLOCK, 3)) for network in (used, fresh)))


@torch.no_grad()
def test_places_of_an_endless_video_take_constant_memory() -> None:
    """Also the shifts of sinks, a new one for each block; those of long ago are computed again."""
    places = Places(tiny_denoiser(), (BLOCK, 2, 2), torch.device("cpu"))
    first, alive = (places.of(0), places.shift(0)), []
    for block in range(3 * NEAR):
        places.of(block), places.shift(block)
        if block in (NEAR, 3 * NEAR - 1):
            alive.append(live_tensor_bytes())
    assert alive[1] <= alive[0]
    assert torch.equal(places.of(0), first[0])
    assert torch.equal(places.shift(0), first[1])


@torch.no_grad()
def test_levels_stay_exact_in_half_precision() -> None:
    """937.5, a level of shift 5, is not a bf16 number."""
    denoiser = tiny_denoiser()
    _, _, text = inputs()
    full = condition(denoiser, text, torch.tensor([0.9375]))
    embedder = denoiser.transformer.condition_embedder
    seen: list[torch.Tensor] = []
    hook = embedder.timesteps_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    half = condition(denoiser.to(torch.bfloat16), text.bfloat16(), torch.tensor([0.9375]))
    hook.remove()
    assert seen[0].item() == 937.5
    assert half.sigmas.item() == full.sigmas.item() == 0.9375


@torch.no_grad()
def test_the_last_norm_is_not_rounded_in_half_precision() -> None:
    """Neither on whole clips nor on blocks."""
    denoiser, (x, _, text) = tiny_denoiser(), inputs(frames=BLOCK)
    denoiser.cast(torch.bfloat16)
    x, text, level = x.bfloat16(), text.bfloat16(), torch.tensor([0.5])
    conditioning, places = condition(denoiser, text, level), Places(denoiser, (BLOCK, 2, 2), x.device)
    seen: list[torch.Tensor] = []
    hook = denoiser.transformer.norm_out.register_forward_hook(lambda *given: seen.append(given[2]))
    denoiser(x, level.expand(2), text, Bidirectional())
    forward_blocks(denoiser, x[:, None], [Row(0, 0)], [0], [conditioning], Rings(1, 1), places)
    hook.remove()
    assert [normed.dtype for normed in seen] == [torch.float32] * 2
    assert not any(torch.equal(normed, normed.bfloat16().float()) for normed in seen)


@torch.no_grad()
def test_rotary_positions_are_relative_and_unbounded() -> None:
    """Only distances count, even beyond the 1,024 frames of Wan's table and before its start."""
    denoiser = tiny_denoiser()
    table = denoiser.positions[0].table
    first = rotations(table, 0, 6, 2, 2)
    assert torch.equal(first, torch.complex(*_table(table, 6)))
    assert torch.equal(rotations(table, -2, 6, 2, 2)[:, 2 * 4 :], first[:, : 4 * 4])  # four tokens per frame
    query, key = torch.randn(2, 1, 24, 2, 12, generator=torch.Generator().manual_seed(1)).unbind(0)
    for start in (-7, 1021, 10**6):
        turns = rotations(table, start, 6, 2, 2)
        scores = torch.einsum("bqhd,bkhd->bhqk", rotate(query, turns), rotate(key, turns))
        expected = torch.einsum("bqhd,bkhd->bhqk", rotate(query, first), rotate(key, first))
        assert relative_error(scores, expected) < 1e-5


def _table(table: WanRotaryPosEmbed, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Diffusers' own cosines and sines, one per pair of channels."""
    cos, sin = table(torch.empty(1, 1, frames, 4, 4))
    return cos[..., 0::2], sin[..., 1::2]


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
    """With one layer, a block depends on its window and nothing before."""
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
