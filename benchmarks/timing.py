"""How long a walk takes, and how fast the device is at its best."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.presets import SEED, Setup
from benchmarks.walks import Walk
from hiar.models.pixels import to_frames
from hiar.noise import normals
from hiar.rollout.walk import walk as walk_grid
from hiar.transfer import arrivals, download, lead

REPEATS, WARM = 20, 3  # times that something short is measured in a round, and times before that do not count
PEAK_SECONDS = 2.0  # after which no more products are timed
PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is the device's peak


@dataclass(frozen=True)
class Timing:
    """One walk: seconds from its start to each finished block, and the device's memory at its fullest, bytes."""

    blocks: Sequence[float]
    peak_memory: int | None

    @property
    def seconds(self) -> float:
        return self.blocks[-1]

    @property
    def between(self) -> float:
        """Median seconds from one finished block to the next."""
        return statistics.median(b - a for a, b in itertools.pairwise(self.blocks)) if len(self.blocks) > 1 else 0.0


def now(device: torch.device) -> float:
    """Seconds, once the device has computed all it was asked to; blocks that are still to arrive are not waited for."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()


@torch.no_grad()
def time_walk(setup: Setup, walk: Walk, blocks: int, decode: bool) -> Timing:
    """Carry out a walk in this process; ``decode``: every block's frames as soon as it is finished.

    A block is finished when it has reached the host, while a GPU is asked for the next, as in `hiar stream`.
    """
    device = setup.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rollout = setup.rollout(setup.preset.grid(walk, blocks))
    decoded = setup.codec.decoding()
    walked = walk_grid(setup.denoiser, rollout, walk.order, passes=walk.passes)
    start = now(device)
    asked = (download(to_frames(decoded(latent.float())) if decode else latent) for _, latent in walked)
    ends = [time.perf_counter() - start for _ in arrivals(asked, lead(device))]
    return Timing(ends, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None)


@torch.no_grad()
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, as a linear layer computes it: the best of a few.

    Of fewer where they take seconds, as in bf16 on a processor that cannot multiply such numbers.
    """
    n = PEAK_SIZE[device.type]
    left, right = normals("measuring", SEED, range(2), (n, n)).to(device, dtype)
    times: list[float] = []
    while len(times) < WARM + REPEATS and sum(times) < PEAK_SECONDS:
        start = now(device)
        torch.nn.functional.linear(left, right)
        times.append(now(device) - start)
    return 2 * n**3 / min(times)
