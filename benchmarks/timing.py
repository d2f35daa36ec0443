"""How long a walk takes, and the peak speed of the device."""

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

REPEATS, WARM = 20, 3  # matrix products timed for the peak, and a few more to warm up; the fastest counts
PEAK_SECONDS = 2.0  # after which no more products are timed
PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product gives the device's peak


@dataclass(frozen=True)
class Timing:
    """One walk: seconds from its start to each finished block, and the device's peak memory in bytes."""

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
    """Seconds on the clock, once the device has finished its queued work; copies to the host may still be running."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()


@torch.no_grad()
def time_walk(setup: Setup, walk: Walk, blocks: int, decode: bool) -> Timing:
    """Run a walk in this process; ``decode``: decode every block as soon as it is finished.

    A block is finished when it has reached the host; meanwhile a GPU computes the next one, as in `hiar stream`.
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
    """Operations per second of a large matrix product, as a linear layer computes it: the best of a few.

    Of fewer if they are slow, as in bf16 on a processor without bf16 arithmetic.
    """
    n = PEAK_SIZE[device.type]
    left, right = normals("measuring", SEED, range(2), (n, n)).to(device, dtype)
    times: list[float] = []
    while len(times) < WARM + REPEATS and sum(times) < PEAK_SECONDS:
        start = now(device)
        torch.nn.functional.linear(left, right)
        times.append(now(device) - start)
    return 2 * n**3 / min(times)
