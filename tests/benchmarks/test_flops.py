"""The count of operations against torch's own, and the shapes of the presets against known figures."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import condition_flops, pass_flops, row_flops, sizes
from benchmarks.memory import caches
from benchmarks.presets import PRESETS, build
from benchmarks.walks import ALONE, HIAR, SELF_FORCING, SHARED, Walk, pipelined
from hiar.rollout.walk import generate


@torch.no_grad()
@pytest.mark.parametrize("walk", ALONE, ids=lambda walk: walk.name)
def test_operations_of_a_walk_equal_torchs_count(walk: Walk):
    """The window fills and slides; the count is proportional to the number of samples."""
    setup = build(PRESETS["wan-tiny"](), torch.device("cpu"), batch=2)
    grid = setup.preset.grid(walk, blocks=5)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:  # counts matrix products, on every device
        generate(setup.denoiser, setup.rollout(grid), walk.order, passes=walk.passes)
    shape = sizes(setup.preset)
    passes = [step for place in walk.places(grid) for step in place]
    expected = condition_flops(shape, setup.preset.steps + 1, batch=2)
    expected += 2 * sum(pass_flops(shape, grid, step) for step in passes)
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize(("name", "weights"), [("wan-1.3b", 1_418_996_800), ("wan-14b", 14_288_491_584)])
def test_wan_has_its_number_of_weights(name: str, weights: int):
    setup = build(PRESETS[name](), torch.device("meta"), batch=1)
    assert sum(parameter.numel() for parameter in setup.denoiser.parameters()) == weights


def test_wan_keeps_modulation_and_norms_in_full_precision():
    denoiser = build(PRESETS["wan-tiny"](), torch.device("cpu"), batch=1).denoiser
    types = {name: parameter.dtype for name, parameter in denoiser.named_parameters()}
    full = {name for name, dtype in types.items() if dtype == torch.float32}
    assert {"transformer.scale_shift_table", "transformer.blocks.0.norm2.weight"} < full
    assert types["transformer.blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert types["transformer.patch_embedding.weight"] == torch.bfloat16


def test_a_row_of_wan_is_mostly_attention_to_its_window():
    preset = PRESETS["wan-1.3b"]()
    shape = sizes(preset)
    assert shape.tokens == 3 * 30 * 52
    assert row_flops(shape, preset.window_blocks) > 3 * row_flops(shape, 0)


@pytest.mark.parametrize(
    ("walk", "held"), [(HIAR, [4]), (SELF_FORCING, [1]), (SHARED, [4]), (pipelined("fused", 3), [1, 1, 2])]
)
def test_number_of_caches_that_each_process_holds(walk: Walk, held: list[int]):
    grid = PRESETS["wan-tiny"]().grid(walk, blocks=5)
    assert [caches(grid, passes) for passes in walk.places(grid)] == held
