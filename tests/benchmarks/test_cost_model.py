"""The cost model on walks that can be computed by hand."""

from __future__ import annotations

import pytest

from benchmarks.cost_model import Costs, place_seconds, predict, timeline
from benchmarks.extrapolate import OUT, PRESET, estimate, page
from benchmarks.presets import PRESETS
from benchmarks.walks import FUSED, HIAR, SELF_FORCING, SHARED, pipelined
from hiar.grid import make_grid


def test_a_pipeline_of_two_steps_by_hand():
    """Process 0: denoise at 0-1, message to 1.25, context to 2.25 and so on; process 1 takes block 0 at 1.25-1.5,
    denoises it to 2.5 and delivers it to 3.0.
    """
    walk = pipelined("separate", 2)
    grid = make_grid("output", blocks=3, steps=2, window=2)
    places = walk.places(grid)
    costs = Costs(forward=(1.0,), message=0.25, delivery=0.5)
    seconds = [place_seconds(costs, grid, passes) for passes in places]
    slots = timeline(places, seconds, costs.message, costs.delivery)
    first, second = [[(slot.start, slot.end) for slot in row] for row in slots]
    assert first == [(0, 1), (1.25, 2.25), (2.25, 3.25), (3.5, 4.5), (4.5, 5.5)]
    assert second == [(1.5, 2.5), (3.0, 4.0), (4.25, 5.25), (5.75, 6.75), (7.0, 8.0)]
    assert predict(costs, grid, places, cores=2) == 8.5
    assert predict(costs, grid, places, cores=1) == 10.0  # ten passes on one core


def test_every_part_of_a_walk_is_counted_once():
    """Three blocks, two steps, fused: 2 x (one row, two pairs); block 0 sees one block fewer than the window holds."""
    grid = make_grid("output", blocks=3, steps=2, window=2)
    (passes,) = FUSED.places(grid)
    costs = Costs((1.0, 1.5), context=0.125, around=0.5, noise=8.0, renoise=16.0, place=32.0, condition=64.0)
    first = 1.0 - 0.125 + 0.5
    pair, last = 1.5 - 0.125 + 0.5, 1.5 + 0.5
    assert place_seconds(costs, grid, passes) == [
        first + 8 + 16 + 32 + 64,
        pair + 8 + 16 + 32,
        last + 8 + 16 + 32,
        first,
        pair,
        last,
    ]


def test_blocks_that_leave_their_keys_cost_more():
    grid = make_grid("shared", blocks=2, steps=3, window=2)
    (passes,) = SHARED.places(grid)
    with_it, without = (sum(place_seconds(Costs((1.0,), leave=leave), grid, passes)) for leave in (0.5, 0.0))
    assert with_it - without == 0.5 * 4  # two blocks, the steps after the first


def test_one_process_takes_the_sum_of_its_passes():
    grid = make_grid("output", blocks=3, steps=4, window=2)
    assert predict(Costs((1.0,)), grid, HIAR.places(grid), cores=1) == 4 * (3 + 2)


def test_four_gpus_come_near_the_bound_and_keep_below_it():
    """One fused pass of two blocks against five of one: 2.5, minus the cost of filling and draining the pipeline."""
    preset = PRESETS["wan-1.3b"]()
    gains = []
    for blocks in (7, 27, 240):
        alone, four = estimate(preset, SELF_FORCING, blocks, 1), estimate(preset, pipelined("fused", 4), blocks, 4)
        gains.append(alone.video / four.video)
    assert 1 < gains[0] < gains[1] < gains[2] < 2.5
    assert gains[2] == pytest.approx(2.5, rel=0.02)


def test_more_gpus_than_steps_make_more_videos_but_none_faster():
    preset = PRESETS["wan-1.3b"]()
    four, sixty_four = (estimate(preset, pipelined("fused", 4), 27, gpus) for gpus in (4, 64))
    assert sixty_four.video == four.video
    assert sixty_four.throughput == 16 * four.throughput


def test_the_committed_extrapolation_is_up_to_date():
    assert OUT.read_text(encoding="utf-8") == page(PRESETS[PRESET]())
