"""Every random number of the project as a function of what it is for.

A counter-based generator (Philox) is keyed by purpose and seed, and its counter by sample, step and block: draws of two
purposes, seeds or cells can neither meet nor overlap, and no order of the walk, batch size or split over processes can
change them. Numbers are drawn on the CPU, whatever the device, so that a GPU shows the same video.
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
    "codec batch",  # what a training step draws for its batch as a whole, and the noise of each sample
    "codec noise",
    "teacher batch",
    "teacher noise",
    "pairs noise",  # where the teacher starts, for trajectories and for clips
    "clip noise",
    "init batch",
    "init noise",
    "causal teacher batch",
    "causal teacher noise",
    "causal pairs noise",
    "rollout",  # the noise of a cell of the grid
    "distill prompts",  # in which order a file of them is gone through
    "critic prompts",
    "exit step",
    "context level",  # of rollouts, where it is drawn
    "forcing levels",  # of a video that stands in the place of a rollout, and which one it is
    "forcing noise",
    "dmd levels",
    "dmd noise",
    "forward-KL pairs",
    "critic exit step",
    "critic context level",
    "critic replay",
    "critic levels",
    "critic noise",
    "measuring",  # what only serves to find out how fast or how exact something is
]


# Of the transform, in its types: numpy takes longer over Python's own numbers.
_SHIFT, _ONE = np.uint32(9), np.float32(1).view(np.uint32)
_TWO, _CIRCLE = np.float32(2), np.float32(2 * math.pi)


def stream(purpose: Purpose, seed: int, *, sample: int = 0, step: int = 0, block: int = 0) -> np.random.Generator:
    """A stream of numbers that purpose, seed, sample, step and block alone decide; all from 0, below 2^64."""
    return np.random.Generator(np.random.Philox(key=_key(purpose, seed), counter=[0, block, step, sample]))


def normals(
    purpose: Purpose, seed: int, samples: Sequence[int], shape: Sequence[int], *, step: int = 0, block: int = 0
) -> Tensor:
    """Standard normal noise of each sample: (len(samples), *shape), float32; the same bits in any batch."""
    count = math.prod(shape)
    half = -(-count // 2)
    rows = [_philox.at(purpose, seed, sample, step, block).random_raw(half) for sample in samples]
    numbers = _box_muller(rows[0] if len(rows) == 1 else np.stack(rows))
    return torch.from_numpy(numbers[..., :count]).reshape(len(samples), *shape)


def _box_muller(words: np.ndarray) -> np.ndarray:
    """Two normal numbers of each random word: (..., n) uint64 -> (..., 2 n) float32, in the memory of ``words``.

    In whole arrays this takes a third of the time of numpy's normals, which come one by one. Uniform numbers have 23
    bits, so that no normal one is larger than 5.65.
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
    """Within the body torch's own generator is one that purpose and seed decide: networks draw their weights from it.

    torch takes 32 bits of a seed; for the few networks of an experiment that is enough.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(purpose, seed).integers(2**32)))
        yield


class _Philox(threading.local):
    """One generator a thread, set to another key and counter for each draw: that takes a fifth of making a new one."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._state: Any = self._bits.state  # as of one from which nothing has been drawn

    def at(self, purpose: Purpose, seed: int, sample: int, step: int, block: int) -> np.random.Philox:
        """The generator at the start of a stream."""
        self._state["state"]["key"] = _key(purpose, seed)
        self._state["state"]["counter"][:] = (0, block, step, sample)
        self._bits.state = self._state
        return self._bits


_philox = _Philox()


@lru_cache(maxsize=256)
def _key(purpose: Purpose, seed: int) -> np.ndarray:
    """The generator's 128 bits: the seed, and a hash of the purpose, so that a new purpose changes no other."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    return np.array([seed, int.from_bytes(digest, "little")], dtype=np.uint64)
