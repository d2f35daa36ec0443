"""Stage sample: long rollouts of one checkpoint, as videos and latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hiar.config import Params
from hiar.grid import fastest
from hiar.io.files import writing
from hiar.io.names import video_name
from hiar.io.outputs import CRF
from hiar.io.process_group import ALONE, Ranks
from hiar.io.progress import Progress
from hiar.models.card import Walk, walk_of
from hiar.models.denoiser import guided_x0
from hiar.models.generator import Generator
from hiar.noise import normals
from hiar.rollout.cell import Rollout
from hiar.rollout.ode import ode_states
from hiar.rollout.walk import walk as walk_grid
from hiar.schedule import step_sigmas
from hiar.stages.common import Paths, Stage, sample_world, stage
from hiar.stages.computing import Choice, computing
from hiar.stages.fitting import Way, check_frames, way_of
from hiar.stages.plan import load_sampler, settled
from hiar.stages.rollouts import make_rollout
from hiar.stages.videos import (
    batches,
    gather,
    missing_batches,
    require_finite_latents,
    write_captions,
    write_latents,
    write_videos,
)
from hiar.transfer import arrivals, download, lead
from hiar.worlds.interface import FIRST_CLIP

Model = Literal["teacher", "init", "distill", "walked"]
# The names of these stages in dvc.yaml.
DEFINITIONS = {"teacher": "sample-teacher", "init": "sample-init", "distill": "sample", "walked": "sample-walked"}


def run(params: Params, workspace: Path, seed: int, model: Model, variant: str | None, walk: str | None = None) -> None:
    """Write artifacts/seed-S/samples/MODEL[/VARIANT]: ``sample.videos`` videos on prompts and noise all models share.

    Students roll out ``sample.frames`` frames with the walk of ``variant``, model walked with that of the variant
    ``walk``; the teacher makes clips of its own length.
    """
    paths = Paths(workspace, seed)
    distilled = paths.distilled(variant or "")
    checkpoint = {"teacher": paths.teacher, "init": paths.init, "distill": distilled, "walked": distilled}[model]
    method = walk or variant
    way = None if method is None else walk_of(params.variant(method))
    variant = f"{variant}/{walk}" if walk else variant
    parents = {"checkpoint": (checkpoint, "checkpoint")}
    out = paths.samples(model, variant)
    with stage(
        "sample",
        params,
        workspace,
        out,
        seed=seed,
        parents=parents,
        variant=variant,
        definition=DEFINITIONS[model],
        shared=True,
    ) as work:
        count, batch, ranks = params.sample.videos, params.sample.batch, work.ranks
        with ranks.agreed():
            source = load_sampler(checkpoint, work.accelerator.device)
            prompts = sample_world(params).prompts(seed=seed, first=FIRST_CLIP["sample"], count=count)
            frames = params.sample.frames if way else source.card.video.frames
            check_frames(source, frames, count, batch, work.folder, kept=True, field="params.yaml: sample.frames")
        source.prepare(prompts)
        with ExitStack() as computed:
            chosen = None
            if way is not None:
                chosen, choice = _settled(work, source, way, prompts, frames, batch)
                computed.enter_context(computing(source.denoiser, choice))
                batch = chosen.videos
            label = f"sample {variant or model}"
            make_videos(work.folder, source, prompts, frames, way, seed, batch, label, way=chosen, ranks=ranks)
        if not ranks.leads:
            return
        write_captions(work.folder, prompts, prompts)
        work.finish("samples", model=model, **describe(source, way, frames))
        for number in range(params.report.videos):
            work.run.artifact(work.folder / video_name(number, count))


def _settled(
    work: Stage, source: Generator, walk: Walk, prompts: Sequence[str], frames: int, most: int
) -> tuple[Way, Choice]:
    """The fastest way that fits in memory, with at most ``most`` videos at a time, and what computes it."""
    ranks, seed = work.ranks, work.facts["seed"]

    def rollout(numbers: range) -> Rollout:
        text = source.embed(prompts[numbers.start : numbers.stop])
        return make_rollout(source, text, walk, frames, seed, numbers)

    way = None
    with ranks.agreed():
        if ranks.leads:
            way = way_of(source, walk, rollout(range(1)), most, beside=ranks.size)
    return settled(work.folder, source, walk, rollout, len(prompts), way, ranks)


def make_videos(
    folder: Path,
    source: Generator,
    prompts: Sequence[str],
    frames: int,
    walk: Walk | None,
    seed: int,
    batch: int,
    label: str,
    *,
    save_latents: bool = True,
    given: Tensor | None = None,
    crf: int = CRF,
    way: Way | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Fill ``folder`` with {0000,0001,...}.mp4 and latents.safetensors.

    Batches are dealt to the processes, which work in rounds of one batch each, so that all stop after the first error.
    Complete batches and videos are not made again.

    Progress counts half a frame when its latent is there, and the other half when its pictures are written: in large
    worlds decoding takes as long as walking.
    """
    every, whole = batches(len(prompts), batch), frames * len(prompts)
    todo = missing_batches(folder, len(prompts), batch, ranks)
    own = [number for index in range(ranks.rank, len(every), ranks.size) for number in every[index]]
    unwritten = sum(not (folder / video_name(number, len(prompts))).exists() for number in own)
    halves = int(ranks.sums([frames * (sum(len(every[index]) for index in todo) + unwritten)])[0])

    def make(index: int, advance: Callable[[int], None]) -> None:
        with writing(folder):
            if index in todo:
                numbers = every[index]
                asked = [prompts[i] for i in numbers]
                latents = sample_latents(source, asked, frames, walk, seed, numbers, advance, given, way)
                write_latents(folder, index, latents)
            if index < len(every):
                write_videos(folder, source, index, every[index], len(prompts), crf, advance)

    with Progress(label, whole, whole - halves // 2, unit="frames") if ranks.leads else nullcontext() as progress:

        def heard(count: int) -> None:
            nonlocal halves
            before, halves = halves, halves - count
            if progress:
                progress.advance(before // 2 - halves // 2)

        for first in range(0, len(every), ranks.size):
            ranks.together(partial(make, first + ranks.rank), heard)
    if ranks.leads:
        gather(folder, len(prompts), batch, save_latents)


def describe(source: Generator, walk: Walk | None, frames: int) -> dict[str, Any]:
    """The facts in a samples' manifest on how its videos were made; enough to score them without params.yaml."""
    first, block = source.block_pictures
    return {
        "frames": frames,
        "first_block": first,
        "block": block,
        "world": source.card.world.model_dump(mode="json"),
        **{name: walk and getattr(walk, name) for name in Walk.model_fields},
    }


@torch.no_grad()
def sample_latents(
    source: Generator,
    prompts: list[str],
    frames: int,
    walk: Walk | None,
    seed: int,
    numbers: range,
    advance: Callable[[int], None] = lambda frames: None,
    given: Tensor | None = None,
    way: Way | None = None,
) -> Tensor:
    """Latents (len(prompts), C, frames, h, w) on the CPU; ``advance`` is called with how many more frames are done.

    given: latents (1, C, f, h, w) that every video begins with. way: how the grid is walked, None for the fastest way.
    A video depends on its prompt, the seed and its number alone. Raises UserError for the first block that is not
    finite.
    """
    text = source.embed(prompts)
    if walk is None:
        latents = _teacher_latents(source, text, frames, seed, numbers, advance)
        require_finite_latents(latents, numbers)
        return latents
    order, passes = way[:2] if way else fastest(walk.context)
    rollout = make_rollout(source, text, walk, frames, seed, numbers, given=given)
    blocks: list[Tensor] = []
    if given is not None:
        given = given.expand(len(prompts), -1, -1, -1, -1)
        blocks += given.cpu().split(source.card.video.block, dim=2)
        advance(len(given) * given.shape[2])
    walked = walk_grid(source.denoiser, rollout, order, given, passes=passes)
    made = (download(latent) for _, latent in source.in_turn(source.denoiser, walked))
    for latent in arrivals(made, lead(source.device)):
        require_finite_latents(latent, numbers, len(blocks) * latent.shape[2])
        blocks.append(latent)
        advance(len(latent) * latent.shape[2])
    return torch.cat(blocks, dim=2)


def _teacher_latents(
    source: Generator, text: Tensor, frames: int, seed: int, numbers: range, advance: Callable[[int], None]
) -> Tensor:
    """As `sample_latents`, for a teacher: all frames are done at once, so each step is reported as a share of them."""
    channels, height, width = source.latent_size
    shape = (channels, frames, height, width)
    noise = normals("clip noise", seed, numbers, shape)
    steps, shift, guidance = source.card.solver_steps, source.card.schedule.teacher_shift, source.card.guidance
    no_text, solver = source.embed_nothing().expand_as(text), source.world.solver
    source.turn(source.denoiser)
    taken = 0

    def step_taken() -> None:
        nonlocal taken
        whole, before, taken = len(text) * frames, taken, taken + 1
        advance(whole * taken // steps - whole * before // steps)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        step_taken()
        return (x - guided_x0(source.denoiser, x, sigma.expand(len(x)), text, no_text, guidance)) / sigma

    with source.autocast():
        if solver is not None:
            return solver(velocity, noise.to(text), steps, shift).cpu()
        states = ode_states(source.denoiser, noise.to(text), step_sigmas(steps, shift), text, no_text, guidance)
        latents = next(states)
        for state in states:
            latents = state
            step_taken()
    return latents.cpu()
