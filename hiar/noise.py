"""Every noise tensor of a rollout as a function of (seed, sample, step, block).

No order of the walk, batch size or split over processes can then change a video. Values are drawn on the CPU, whatever
the device, so that a GPU shows the same video.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on ``key`` alone; unlike sums of integers, keys do not collide."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def block_noise(seed: int, samples: Sequence[int], step: int, block: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one cell for each sample: (len(samples), *shape), float32.

    Step 0 is the noise the block starts from; step j > 0 is what re-noises it to level t_j.
    """
    return torch.stack(
        [torch.randn(tuple(shape), generator=generator(seed, sample, step, block)) for sample in samples]
    )


def upload(x: Tensor, device: torch.device) -> Tensor:
    """What was drawn or computed in the host's memory, on the device; a GPU is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
