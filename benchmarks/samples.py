"""Measures all walks, interleaved round by round, with all the parts of the cost model."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.pipelined import Pipeline
from benchmarks.presets import Setup
from benchmarks.probe import Probe
from benchmarks.reference import ORDERS, Reference
from benchmarks.timing import Timing, peak_flops, time_walk
from benchmarks.walks import Walk
from hiar.config import Order


@dataclass
class Samples:
    """What has been measured so far.

    walks: one timing per round of each walk, by walk and whether it decodes. parts: seconds, one mean per round, since
    a walk is the sum of its passes, slow ones included. together: the same for two processes that work side by side.
    others: seconds per round of the original implementation's walks. peak: floating-point operations per second.
    """

    walks: dict[tuple[Walk, bool], list[Timing]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    together: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    others: dict[Order, list[float]] = field(default_factory=lambda: defaultdict(list))
    peak: float = 0.0


def measure(
    setup: Setup, walkers: Pipeline | None, other: Reference | None, walks: list[Walk], blocks: int, rounds: int
) -> Iterator[Samples]:
    """Interleave all walks, with and without decoding, and all their parts; every round begins with another walk.

    Yields after each round all that has been measured so far. Each walk runs once, shortened, before it is timed: the
    processor's caches hold the weights and code of others.
    """
    cases = [(walk, decode) for walk in walks for decode in (False, True)]
    rows = max(_rows(setup, walk, blocks) for walk in walks)

    def run(walk: Walk, decode: bool, length: int) -> Timing:
        if walk.processes:
            assert walkers is not None
            return walkers.time_walk(walk, length, decode)
        return time_walk(setup, walk, length, decode)

    warm_up = min(blocks, setup.preset.window_blocks + setup.preset.steps)
    samples = Samples()
    for number in range(rounds):
        first = number * len(cases) // rounds
        for done, case in enumerate(cases[first:] + cases[:first]):
            tell(f"round {number + 1} of {rounds}: {done} of {len(cases)} walks")
            run(*case, warm_up)
            samples.walks[case].append(run(*case, blocks))
        if other:
            for order in ORDERS:
                other.seconds(order, warm_up)
                samples.others[order].append(other.seconds(order, blocks))
        for name, seconds in Probe(setup, rows).measure().items():
            samples.parts[name].append(statistics.fmean(seconds))
        for parts in walkers.parts(rows) if walkers else ():
            for name, seconds in parts.items():
                samples.together[name].append(statistics.fmean(seconds))
        samples.peak = max(samples.peak, peak_flops(setup.device, setup.preset.dtype))
        yield samples


def tell(line: str) -> None:
    """Print a line of progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def _rows(setup: Setup, walk: Walk, blocks: int) -> int:
    """Rows of a walk's largest forward call."""
    places = walk.places(setup.preset.grid(walk, blocks))
    return max(len(step.write + step.denoise) for place in places for step in place)
