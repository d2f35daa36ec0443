"""Every random number of the project, as a function of its purpose.

Purpose and seed key a counter-based generator (Philox); sample, step and block set its counter. Draws for two purposes,
seeds or cells therefore never overlap, and do not depend on the order of the walk, the batch size or the number of
processes. Numbers are drawn on the CPU, whatever the device, so that a GPU makes the same video.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Purpose = Literal[
    "scene",  # what happens in a clip of the built-in world
    "codec weights",
    "denoiser weights",
    "text weights",
    "codec batch",  # "batch": draws for a training step's whole batch; "noise": for each of its samples
    "codec noise",
    "teacher batch",
    "teacher noise",
    "pairs noise",  # the teacher's initial noise, for trajectories and for clips
    "clip noise",
    "init batch",
    "init noise",
    "causal teacher batch",
    "causal teacher noise",
    "causal pairs noise",
    "rollout",  # the noise of a cell of the grid
    "distill prompts",  # the order in which a file of prompts is read
    "critic prompts",
    "exit step",
    "context level",  # of rollouts, if drawn
    "forcing levels",  # of the video used in place of a rollout, and the choice of that video
    "forcing noise",
    "dmd levels",
    "dmd noise",
    "forward-KL pairs",
    "critic exit step",
    "critic context level",
    "critic replay",
    "critic levels",
    "critic noise",
    "measuring",  # inputs for measurements of speed or precision
]


# Constants of the transform as numpy scalars: with Python's numbers numpy is slower.
_SHIFT, _ONE = np.uint32(9), np.float32(1).view(np.uint32)
_TWO, _CIRCLE = np.float32(2), np.float32(2 * math.pi)


def stream(purpose: Purpose, seed: int, *, sample: int = 0, step: int = 0, block: int = 0) -> np.random.Generator:
    """A generator that depends only on purpose, seed, sample, step and block; each of these numbers is in [0, 2^64)."""
    return np.random.Generator(np.random.Philox(key=_key(purpose, seed), counter=[0, block, step, sample]))


def normals(
    purpose: Purpose, seed: int, samples: Sequence[int], shape: Sequence[int], *, step: int = 0, block: int = 0
) -> Tensor:
    """Standard normal noise for each sample: (len(samples), *shape), float32; the same bits in any batch."""
    count = math.prod(shape)
    half = -(-count // 2)
    rows = [_philox.at(purpose, seed, sample, step, block).random_raw(half) for sample in samples]
    numbers = _box_muller(rows[0] if len(rows) == 1 else np.stack(rows))
    return torch.from_numpy(numbers[..., :count]).reshape(len(samples), *shape)


def _box_muller(words: np.ndarray) -> np.ndarray:
    """Two normal numbers from each random word: (..., n) uint64 -> (..., 2 n) float32, in the memory of ``words``.

    On whole arrays this takes a third of the time of numpy's normals, which are drawn one by one. Uniform numbers have
    23 bits, so no normal number exceeds 5.65.
    """
    bits = words.view(np.uint32)
    np.right_shift(bits, _SHIFT, out=bits)
    np.bitwise_or(bits, _ONE, out=bits)
    uniform = bits.view(np.float32)  # in [1, 2)
    half = words.shape[-1]
    radius, angle = uniform[..., :half], uniform[..., half:]
    np.subtract(_TWO, radius, out=radius)
    np.log(radius, out=radius)
    np.multiply(radius, -_TWO, out=radius)
    np.sqrt(radius, out=radius)
    np.multiply(angle, _CIRCLE, out=angle)
    sine = np.sin(angle)
    np.cos(angle, out=angle)
    np.multiply(angle, radius, out=angle)
    np.multiply(radius, sine, out=radius)
    return uniform


@contextmanager
def seeded(purpose: Purpose, seed: int) -> Iterator[None]:
    """Within the body, purpose and seed determine torch's own generator, from which networks draw their weights.

    torch's seed is one of 2^32; for the few networks of an experiment that is enough.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(purpose, seed).integers(2**32)))
        yield


class _Philox(threading.local):
    """One generator per thread, with key and counter set for each draw: a fifth of the time of making a new one."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._state: Any = self._bits.state  # that of a fresh generator

    def at(self, purpose: Purpose, seed: int, sample: int, step: int, block: int) -> np.random.Philox:
        """The generator at the start of a stream."""
        self._state["state"]["key"] = _key(purpose, seed)
        self._state["state"]["counter"][:] = (0, block, step, sample)
        self._bits.state = self._state
        return self._bits


_philox = _Philox()


@lru_cache(maxsize=256)
def _key(purpose: Purpose, seed: int) -> np.ndarray:
    """The generator's 128-bit key: the seed and a hash of the purpose, so that a new purpose changes no other."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    return np.array([seed, int.from_bytes(digest, "little")], dtype=np.uint64)
