"""From samples to the figures of a result file: medians with ranges, shares, predictions and their errors."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.cost_model import Costs, predict
from benchmarks.flops import condition_flops, pass_flops, sizes
from benchmarks.memory import process_caches
from benchmarks.presets import Setup
from benchmarks.timing import Timing
from benchmarks.walks import Walk
from hiar.config import Order

Timings = Mapping[tuple[Walk, bool], Sequence[Timing]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def costs_of(parts: Mapping[str, Sequence[float]], window: int) -> Costs:
    """The cost model's parts as medians, or as differences of medians for parts that only show in a longer pass."""
    middle = {name: statistics.median(seconds) for name, seconds in parts.items()}
    rows = sum(name.startswith("forward ") and name.split()[1].isdigit() for name in middle)
    full = middle["forward 1"]
    return Costs(
        forward=tuple(middle[f"forward {count}"] for count in range(1, rows + 1)),
        context=max(0.0, full - middle["forward empty"]) / max(1, window - 1),
        leave=max(0.0, middle["forward leave"] - full),
        **{name: middle[name] for name in ("around", "noise", "renoise", "place", "condition")},
        **{name: middle.get(name, 0.0) for name in ("message", "delivery")},  # none within one process
    )


def walk_record(
    setup: Setup, walk: Walk, blocks: int, timings: Timings, peak: float, costs: Costs, cores: int
) -> dict[str, Any]:
    """A walk as measured and as predicted. Frames are those of the decoded videos, of the whole batch."""
    preset, batch = setup.preset, len(setup.text)
    grid = preset.grid(walk, blocks)
    places = walk.places(grid)
    shape = sizes(preset)
    plain, decoded = timings[walk, False], timings[walk, True]
    frames = preset.frames(blocks) * batch
    seconds = spread([timing.seconds for timing in plain])
    flops = sum(batch * pass_flops(shape, grid, step) for place in places for step in place)
    flops += len(places) * condition_flops(shape, preset.steps + 1, batch)
    predicted = predict(costs, grid, places, cores)
    memory = [timing.peak_memory for timing in plain if timing.peak_memory is not None]
    return {
        "name": walk.name,
        "order": walk.order,
        "context": walk.context,
        "passes": walk.passes,
        "processes": walk.processes,
        "forward_calls": [len(place) for place in places],
        "frames": frames,
        "flops": flops,
        "cache_bytes": max(process_caches(setup, walk, blocks)),
        "seconds": seconds,
        "seconds_a_block": seconds["median"] / blocks,
        "frames_per_second": spread([frames / timing.seconds for timing in plain]),
        "frames_per_second_decoded": spread([frames / timing.seconds for timing in decoded]),
        "first_block_seconds": spread([timing.blocks[0] for timing in plain]),
        "between_blocks_seconds": spread([timing.between for timing in plain]),
        "peak_memory_bytes": max(memory, default=None),
        "share_of_peak": flops / seconds["median"] / (peak * len(places)),
        "predicted_seconds": predicted,
        "predicted_seconds_a_block": predicted / blocks,
        "prediction_error": predicted / seconds["median"] - 1,
    }


def ratio_record(fast: Walk, slow: Walk, timings: Timings, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many times faster one walk is than another, round by round, and as predicted."""
    rounds = [b.seconds / a.seconds for a, b in zip(timings[fast, False], timings[slow, False], strict=True)]
    predicted = {record["name"]: record["predicted_seconds"] for record in records}
    expected = predicted[slow.name] / predicted[fast.name]
    return {
        "walk": fast.name,
        "against": slow.name,
        "measured": spread(rounds),
        "predicted": expected,
        "prediction_error": expected / statistics.median(rounds) - 1,
    }


def reference_record(
    setup: Setup, walks: Sequence[Walk], blocks: int, timings: Timings, others: Mapping[Order, Sequence[float]]
) -> dict[str, Any]:
    """The original implementation's walks, and how many times faster ours are, round by round."""
    frames = setup.preset.frames(blocks) * len(setup.text)
    ratios = [
        {
            "walk": walk.name,
            "against": f"reference {order}",
            "measured": spread([b / a.seconds for a, b in zip(timings[walk, False], seconds, strict=True)]),
        }
        for order, seconds in others.items()
        for walk in walks
    ]
    rates = {order: spread([frames / value for value in seconds]) for order, seconds in others.items()}
    return {"frames_per_second": rates, "ratios": ratios}
