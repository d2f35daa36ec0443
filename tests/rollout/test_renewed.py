"""Contexts renewed where the prompt changes, compared with a rollout without caches and with the plain walk."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from masked import last_block
from tiny import live_tensor_bytes, relative_error, tiny_denoiser
from torch import Tensor

from hiar.config import Context, Conventions, Order, Passes
from hiar.grid import Cell, count_passes, fastest, make_grid
from hiar.rollout.cell import Rollout
from hiar.rollout.renewed import walk_renewed
from hiar.rollout.walk import walk
from hiar.schedule import step_sigmas

STEPS, BLOCK, BLOCKS, SHAPE = 2, 2, 8, (3, 2, 4, 4)
FIRST, SECOND, THIRD = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(2))
CLIP = torch.randn(2, 3, 2 * BLOCK, 4, 4, generator=torch.Generator().manual_seed(3))


def rollout_of(context: Context, window: int = 3, blocks: int | None = BLOCKS, **geometry: int) -> Rollout:
    grid = make_grid(context, blocks=blocks, steps=STEPS, window=window, **geometry)
    changes = {3: SECOND, 6: THIRD}
    return Rollout(grid, step_sigmas(STEPS, 5.0), SHAPE, "sde", 7, range(2), FIRST, changes)


def joined(blocks: Any, count: int = BLOCKS) -> Tensor:
    numbers, latents = zip(*islice(blocks, count), strict=True)
    assert list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))
    return torch.cat(latents, dim=2)


@torch.no_grad()
@pytest.mark.parametrize("given", [0, 2])
def test_after_a_change_nothing_of_the_old_prompt_is_seen(given: int) -> None:
    """Each block of Self-Forcing's walk depends only on the clean blocks of its window, all under its own prompt."""
    model, rollout = tiny_denoiser(), rollout_of("finished", given=given)
    clip = CLIP if given else None
    videos = joined(walk_renewed(model, rollout, "block_first", clip), BLOCKS - given)
    latents = [*(clip.split(BLOCK, dim=2) if clip is not None else ()), *videos.split(BLOCK, dim=2)]
    for start, end, text in ((given, 3, FIRST), (3, 6, SECOND), (6, BLOCKS, THIRD)):
        seen = latents[max(0, start - 2) : start]
        for block in range(start, end):
            x = rollout.noise(Cell(block, 0))
            for step in range(STEPS):
                x0 = last_block(model, seen, torch.tensor(0.0), x, rollout.sigmas[step], text, rollout.grid.window)
                if step + 1 < STEPS:
                    sigma = rollout.sigmas[step + 1]
                    x = (1 - sigma) * x0 + sigma * rollout.noise(Cell(block, step + 1))
            assert relative_error(latents[block], x0) < 1e-5
            seen.append(latents[block])


@torch.no_grad()
@pytest.mark.parametrize("sinks", [0, 1])
@pytest.mark.parametrize("context", ["output", "input", "clean", "shared", "finished"])
def test_every_order_renews_contexts_alike(context: Context, sinks: int) -> None:
    model, rollout = tiny_denoiser(), rollout_of(context, sinks=sinks)
    plain = joined(walk(model, rollout, fastest(context)[0]))
    orders: list[Order] = ["block_first"] if context == "finished" else ["diagonal"]
    orders += {"output": ["step_first", "block_first"], "input": ["step_first"], "clean": ["step_first"]}.get(
        context, []
    )
    videos = [joined(walk_renewed(model, rollout, order)) for order in orders]
    order, passes = fastest(context)
    videos.append(joined(walk_renewed(model, rollout, order, passes=passes)))
    endless = replace(rollout, grid=replace(rollout.grid, blocks=None))
    videos.append(joined(walk_renewed(model, endless, order, passes=passes)))
    for video in videos:
        assert relative_error(video, videos[0]) < 1e-5
        assert relative_error(video[:, :, : 3 * BLOCK], plain[:, :, : 3 * BLOCK]) < 1e-5
        assert relative_error(video[:, :, 3 * BLOCK : 4 * BLOCK], plain[:, :, 3 * BLOCK : 4 * BLOCK]) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("context", ["output", "finished"])
def test_without_context_the_video_is_that_of_the_plain_walk(context: Context) -> None:
    """A window of one block leaves nothing to renew."""
    model, rollout = tiny_denoiser(), rollout_of(context, window=1)
    order = fastest(context)[0]
    assert relative_error(joined(walk_renewed(model, rollout, order)), joined(walk(model, rollout, order))) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("passes", ["separate", "batched"])
def test_nothing_is_computed_that_a_prompt_change_discards(passes: Passes) -> None:
    """Each part takes as many forward calls as a walk of its blocks with the first ones given."""
    model, rollout, calls = tiny_denoiser(), rollout_of("output"), []
    model.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    joined(walk_renewed(model, rollout, "diagonal", passes=passes))
    parts = [replace(rollout.grid, blocks=blocks, given=given) for blocks, given in ((3, 0), (5, 2), (4, 2))]
    assert len(calls) == sum(count_passes(part, "diagonal", passes) for part in parts)


@torch.no_grad()
def test_a_clip_whose_end_changes_the_prompt_is_shown_with_the_new_one() -> None:
    model = tiny_denoiser()
    rollout = replace(rollout_of("output", given=2), changes={2: SECOND})
    renewed, plain = (joined(walking(model, rollout, "step_first", CLIP), 6) for walking in (walk_renewed, walk))
    assert torch.equal(renewed, plain)


@torch.no_grad()
@pytest.mark.parametrize(("context", "noise"), [("output", 0.0), ("finished", 0.1)])
def test_renewed_contexts_are_shown_like_generated_ones(context: Context, noise: float) -> None:
    """At the method's level, with the noise of clean contexts, even where given clips are shown clean."""
    model, rollout = tiny_denoiser(), rollout_of(context)
    shown = [
        joined(walk_renewed(model, replace(rollout, conventions=one), fastest(context)[0]))
        for one in (
            Conventions(given="level", sinks="turn", context_noise=noise),
            Conventions(given="clean", sinks="turn", context_noise=noise),
        )
    ]
    assert torch.equal(*shown)


@torch.no_grad()
def test_caches_of_the_old_prompt_are_freed() -> None:
    """Before and after a change, only the caches of one window are held."""
    model, rollout = tiny_denoiser(), rollout_of("output", blocks=None)
    held = [live_tensor_bytes() for _ in islice(walk_renewed(model, rollout, "diagonal", passes="batched"), 9)]
    rings = max(held[:3])
    assert max(held[3:]) - rings < (rings - live_tensor_bytes()) / 3
