"""Randomness: a function of its key alone, and different for any two keys."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from hiar.noise import Purpose, normals, seeded, stream
from hiar.worlds.interface import FIRST_CLIP

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
SHAPES = [(4, 3, 8, 8), (2, 1, 31, 35), (1, 1, 3, 3)]  # even and odd counts, large and small


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_is_the_same_in_any_batch_and_order(shape: tuple[int, ...]) -> None:
    together = normals("rollout", 3, [5, 6, 7], shape, step=2, block=1)
    assert together.shape == (3, *shape)
    for samples in ([6], [7, 6], [6, 5, 6]):
        apart = normals("rollout", 3, samples, shape, step=2, block=1)
        assert torch.equal(apart, together[[sample - 5 for sample in samples]])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_part_of_the_key_counts(shape: tuple[int, ...]) -> None:
    one = normals("rollout", 3, [6], shape, step=2, block=1)
    others = [
        normals("clip noise", 3, [6], shape, step=2, block=1),
        normals("rollout", 4, [6], shape, step=2, block=1),
        normals("rollout", 3 + 2**32, [6], shape, step=2, block=1),
        normals("rollout", 3, [7], shape, step=2, block=1),
        normals("rollout", 3, [6 + 2**32], shape, step=2, block=1),
        normals("rollout", 3, [6], shape, step=1, block=1),
        normals("rollout", 3, [6], shape, step=2, block=2),
        normals("rollout", 3, [2], shape, step=6, block=1),
        normals("rollout", 3, [6], shape, step=1, block=2),
    ]
    for a, b in itertools.combinations([one, *others], 2):
        assert np.intersect1d(a, b).size < 20  # equal by chance: float32 has few values near zero


@pytest.mark.parametrize("key", [{}, {"step": 2}, {"block": 3}, {"step": 1, "block": 5}])
@pytest.mark.parametrize("sample", [0, 7])
def test_noise_is_the_box_muller_transform_of_its_stream(sample: int, key: dict[str, int]) -> None:
    """Here in double precision. A seed therefore gives the same video in every version."""
    words = stream("rollout", 3, sample=sample, **key).bit_generator.random_raw(500)
    uniform = (words.view(np.uint32) >> 9) / 2**23
    radius, angle = np.sqrt(-2 * np.log(1 - uniform[:500])), 2 * np.pi * uniform[500:]
    numbers = np.concatenate([radius * np.sin(angle), radius * np.cos(angle)])
    noise = normals("rollout", 3, [sample], (1000,), **key)
    assert noise[0].numpy() == pytest.approx(numbers, abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_is_standard_normal(shape: tuple[int, ...]) -> None:
    noise = normals("rollout", 0, range(300), shape).double().flatten()
    tolerance = 5 / noise.numel() ** 0.5
    assert noise.mean().item() == pytest.approx(0, abs=tolerance)
    assert noise.square().mean().item() == pytest.approx(1, abs=2 * tolerance)
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=10 * tolerance)
    halves = noise.view(300, -1)[:, : noise.numel() // 600 * 2].chunk(2, dim=1)
    assert (halves[0] * halves[1]).mean().item() == pytest.approx(0, abs=2 * tolerance)
    assert 3.5 < noise.abs().max() < 6.5


def test_streams_of_all_purposes_begin_differently_and_do_not_overlap() -> None:
    """With keys like an experiment's: several seeds, samples of every purpose, three steps and three blocks."""
    seeds, samples = (0, 1, 2**32, 2**63 - 1), [*range(12), *(first + 752 for first in FIRST_CLIP.values())]
    cells = list(itertools.product(PURPOSES, seeds, samples, range(3), range(3)))
    words = [stream(p, seed, sample=n, step=j, block=b).bit_generator.random_raw(4) for p, seed, n, j, b in cells]
    assert len(np.unique(np.concatenate(words))) == 4 * len(cells) > 50_000


def test_weights_depend_on_purpose_and_seed_and_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    drawn = {}
    for purpose, seed in itertools.product(("codec weights", "text weights"), (5, 5 + 2**32)):
        with seeded(purpose, seed):  # type: ignore[arg-type]
            drawn[purpose, seed] = nn.Linear(3, 3).weight
        with seeded(purpose, seed):  # type: ignore[arg-type]
            assert torch.equal(nn.Linear(3, 3).weight, drawn[purpose, seed])
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in itertools.combinations(drawn.values(), 2):
        assert not torch.equal(a, b)
