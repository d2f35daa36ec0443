"""A grid walked by several processes gives the same video as by one."""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranked import BLOCK, SHAPE, STEPS, Case, clips, rollouts, run_ranks
from safetensors.torch import load_file
from tiny import live_tensor_bytes, relative_error, tiny_denoiser

from hiar.grid import make_grid
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import Rollout
from hiar.rollout.pipeline import finished_blocks, walk_rank
from hiar.rollout.shared_memory import SharedMemory, line_of
from hiar.rollout.walk import generate, split_steps, walk_steps
from hiar.schedule import step_sigmas

SHORT = {(4, True), (3, False)}  # (ranks, shared memory); other cases are marked long
CASES = [
    Case("output", "separate"),
    Case("output", "fused"),
    Case("output", "batched", sinks=1),
    Case("input", "fused"),
    Case("clean", "fused"),
    Case("output", "separate", given=1),
    Case("output", "batched", given=2),
    Case("output", "separate", given=1, level=0.85),
    Case("output", "fused", sinks=1, level=(0.0, 1.0, 0.6)),
]


@functools.cache
@torch.no_grad()
def expected_of(number: int) -> list[torch.Tensor]:
    """What each rollout of a case generates after its clip in one process, with step_first and separate passes."""
    case = CASES[number]
    pairs = zip(rollouts(case), clips(case), strict=True)
    return [generate(tiny_denoiser(), one, "step_first", clip)[:, :, case.given * BLOCK :] for one, clip in pairs]


@pytest.mark.parametrize(
    ("ranks", "shared"),
    [
        pytest.param(ranks, shared, marks=[] if (ranks, shared) in SHORT else pytest.mark.long)
        for ranks in (1, 2, 3, 4)
        for shared in (True, False)
    ],
)
def test_any_number_of_processes_gives_one_video(ranks: int, shared: bool, tmp_path: Path) -> None:
    """Bitwise where the passes are the same."""
    run_ranks(ranks, shared, tmp_path, CASES)
    for number, case in enumerate(CASES):
        arrived = load_file(tmp_path / f"{number}.safetensors")
        blocks = [arrived[name] for name in sorted(arrived)]
        for expected in expected_of(number):
            count = expected.shape[2] // BLOCK
            video, blocks = torch.cat(blocks[:count], dim=2), blocks[count:]
            assert relative_error(video, expected) < 1e-5
            if case.passes == "separate":
                assert torch.equal(video, expected)
        assert not blocks


def walk_or_leave(model: Denoiser, walked: list[Rollout], links: SharedMemory, *options: Any) -> None:
    """Walk one rank; if it fails, close its links as an ended process does, so that nobody waits for it."""
    try:
        walk_rank(model, walked, links, *options)
    except BaseException:
        for end in links.neighbours:
            if end is not None:
                end.close()
        raise


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_of_a_pipeline_may_be_threads(ranks: int) -> None:
    """As above, but in one process, where coverage and `make mutants` see the code of each rank."""
    models = [tiny_denoiser() for _ in range(ranks)]
    with line_of(ranks + 1) as line, ThreadPoolExecutor(ranks) as pool:
        links = [SharedMemory(rank, ranks, ends, 20.0) for rank, ends in enumerate(line)]
        for number, case in enumerate(CASES):
            futures = [
                pool.submit(walk_or_leave, models[rank], rollouts(case), links[rank], case.passes, clips(case))
                for rank in range(ranks)
            ]
            blocks = list(finished_blocks(rollouts(case), links[ranks]))
            for future in futures:
                future.result()
            for expected in expected_of(number):
                count = expected.shape[2] // BLOCK
                video, blocks = torch.cat(blocks[:count], dim=2), blocks[count:]
                assert relative_error(video, expected) < 1e-5
            assert not blocks


def test_a_pipeline_may_have_one_batch_only() -> None:
    (rollout, *_), model = rollouts(CASES[0]), tiny_denoiser()
    with line_of(2) as line, ThreadPoolExecutor(1) as pool:
        first, codec = (SharedMemory(rank, 1, ends, 20.0) for rank, ends in enumerate(line))
        future = pool.submit(walk_or_leave, model, [rollout], first)
        video = torch.cat(list(finished_blocks([rollout], codec)), dim=2)
        future.result()
    with torch.no_grad():
        assert relative_error(video, generate(model, rollout, "step_first")) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("steps", [range(2), range(1, 2)])
def test_memory_of_a_rank_does_not_grow_with_the_walk(steps: range) -> None:
    grid = make_grid("output", blocks=140, steps=2, window=3)
    rollout = Rollout(grid, step_sigmas(2, 5.0), SHAPE, "sde", 7, range(1), torch.zeros(1, 5, 8))
    alive, model = {}, tiny_denoiser()
    del model.transformer.blocks[1]
    for n, _ in walk_steps(model, rollout, steps, lambda _: torch.zeros(1, *SHAPE)):
        if n in (80, 130):  # positions of about 60 blocks are kept
            alive[n] = live_tensor_bytes()
    assert alive[130] <= alive[80]


def test_a_pipeline_refuses_an_endless_rollout() -> None:
    (rollout, *_) = rollouts(CASES[0])
    endless = dataclasses.replace(rollout, grid=dataclasses.replace(rollout.grid, blocks=None))
    with line_of(2) as line, pytest.raises(ValueError, match="a number of blocks"):
        walk_rank(tiny_denoiser(), [endless], SharedMemory(0, 1, line[0], 1.0))


@given(st.integers(1, 12).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(1, steps))))
def test_every_step_has_one_rank_and_shares_differ_by_at_most_one(case: tuple[int, int]) -> None:
    steps, ranks = case
    shares = split_steps(steps, ranks)
    assert [step for share in shares for step in share] == list(range(steps))
    assert len(shares) == ranks
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_steps_are_shared_out_evenly() -> None:
    assert split_steps(STEPS, 2) == [range(2), range(2, 4)]
    assert split_steps(STEPS, 3) == [range(1), range(1, 2), range(2, 4)]  # the first rank also starts prompts
