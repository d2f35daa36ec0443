"""``hiar sample`` on several processes: the steps of the grid are split over R processes, and one more decodes.

Every process is started with the same command line, by ``hiar sample --processes R`` or by torchrun. Rank r < R walks
its share of the steps (`hiar.rollout.pipeline`); rank R has the codec: it decodes blocks as they are finished, and is
the only one that writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor

from hiar.contexts import rule_of
from hiar.errors import UserError
from hiar.io.artifacts import check_folder, is_made, read_manifest, unfinished
from hiar.io.cores import process_cores
from hiar.io.cpu import settle_cpu
from hiar.io.launcher import own_place
from hiar.io.progress import Progress, tell
from hiar.io.video import open_stream
from hiar.models.card import load_card
from hiar.models.generator import Generator
from hiar.models.kernels import KERNELS, using
from hiar.rollout.cell import Rollout
from hiar.rollout.pipeline import PASSES, finished_blocks, walk_rank
from hiar.rollout.walk import split_steps
from hiar.stages.clips import given_latents
from hiar.stages.computing import settle
from hiar.stages.fitting import Way, check_frames, check_memory
from hiar.stages.group import check_alike, group, numbers_of, own_device, tensor_of
from hiar.stages.plan import load_asked, plan_line
from hiar.stages.prompted import BATCH, MADE, check_request, finish_samples, sample_key
from hiar.stages.request import Request
from hiar.stages.rollouts import make_rollout, walk_asked
from hiar.stages.videos import (
    batches,
    decoding,
    film_path,
    gather,
    missing_batches,
    write_captions,
    write_latents,
    write_videos,
)

NAMES = [None, *KERNELS]  # attention kernels, of which processes send each other the index


def plan_processes(request: Request, ranks: int) -> None:
    """`check_processes` before any process is started; warns if there are more than cores to run them."""
    check_processes(request, ranks)
    if ranks > (cores := process_cores()) and not torch.cuda.is_available():
        tell(f"walk: {ranks} processes share {cores} core(s); --processes {cores} is faster here")


def check_processes(request: Request, ranks: int) -> None:
    """Raise UserError if the steps of a request's walk cannot be split over ``ranks`` processes."""
    card = load_card(request.checkpoint)
    if request.offload:
        raise UserError("--offload: with --processes each network stays on its GPU; leave one of them out")
    if card.stage == "teacher":
        raise UserError("--processes: the teacher is bidirectional and has no steps to split; leave it out")
    walk = walk_asked(card, request.order, request.context, request.level)
    reason = rule_of(walk.context).bound
    if reason:
        raise UserError(
            f"--processes = {ranks}: {reason}, so its steps cannot be split; leave it out, or use --order "
            "diagonal --context output"
        )
    steps = card.schedule.student_steps
    if not 1 <= ranks <= steps:
        raise UserError(f"--processes = {ranks}: the student takes {steps} steps; use 1 to {steps}")


def sample_on_rank(request: Request, out: Path, save_latents: bool, *, stall_seconds: float) -> None:
    """Do this process's part of a run on several; see `stages.prompted.sample_prompts` for the rest.

    Raises UserError for what `sample_prompts` refuses, for a walk that cannot be split and for processes that were not
    started alike, and RunFailed when another process is gone or silent for ``stall_seconds``.
    """
    own = own_place()
    assert own is not None
    rank, ranks = own[0], own[1] - 1
    if rank == ranks:  # the only one that writes, maybe on a machine of its own
        check_folder("--out", out, "samples")
    settle_cpu()
    check_processes(request, ranks)
    read_manifest(request.checkpoint, "checkpoint")
    device, prompts, seed = own_device(), request.prompts, request.seed
    source = load_asked(request, device)
    walk, frames = check_request(source, request)
    assert walk is not None
    check_frames(source, frames, len(prompts), BATCH, out, save_latents)
    every = batches(len(prompts), BATCH)
    given = given_latents(source, request)
    key = sample_key(source, request, walk, given, save_latents)
    with ExitStack() as writing:
        with group(rank, ranks, device, stall_seconds) as links:
            check_alike(key, device)
            if numbers_of(ranks, [is_made(out, "samples", key)] if rank == ranks else None, device) == [True]:
                if rank == ranks:
                    tell(MADE.format(out))
                return
            text = tensor_of(0, source.embed(prompts) if rank == 0 else None, 3, source.denoiser.dtype, device)

            def rollout(numbers: range) -> Rollout:
                part = text[numbers.start : numbers.stop]
                return make_rollout(source, part, walk, frames, seed, numbers, given=given)

            if rank < ranks:
                steps = split_steps(source.card.schedule.student_steps, ranks)[rank]
                check_memory(source, rollout(every[0]), caches=len(steps) if device.type == "cuda" else None)
                kernel, *todo = numbers_of(ranks, None, device)
                with using(NAMES[kernel]):
                    clips = [None if given is None else given.expand(len(every[i]), -1, -1, -1, -1) for i in todo]
                    walk_rank(source.denoiser, [rollout(every[index]) for index in todo], links, given=clips)
                return
            folder = writing.enter_context(unfinished(out, key, replaces="samples"))
            # Layers stay uncompiled, even if a single process began otherwise: compiling takes longer than others wait.
            choice = settle(folder, source, walk, rollout(every[0]), 0)._replace(compiled=None)
            way = Way("diagonal", PASSES, len(every[0]))
            tell(plan_line(source, walk, rollout(every[0]), choice, way, ranks))
            todo = missing_batches(folder, len(prompts), BATCH)
            numbers_of(ranks, [NAMES.index(choice.kernel), *todo], device)
            arrivals = finished_blocks([rollout(every[index]) for index in todo], links)
            done = frames * (len(prompts) - sum(len(every[index]) for index in todo))
            with Progress("sample", frames * len(prompts), done, unit="frames") as progress:
                for index in todo:
                    latents = _collect(folder, source, arrivals, every[index], len(prompts), frames, given, progress)
                    write_latents(folder, index, latents)
        # The other processes are done: nobody waits for what follows.
        for index, numbers in enumerate(every):
            write_videos(folder, source, index, numbers, len(prompts), request.crf)
        gather(folder, len(prompts), BATCH, save_latents)
        write_captions(folder, request.names, prompts)
        finish_samples(folder, source, request, walk, frames, key)


def _collect(
    folder: Path,
    source: Generator,
    arrivals: Iterator[Tensor],
    numbers: range,
    count: int,
    frames: int,
    given: Tensor | None,
    progress: Progress,
) -> Tensor:
    """Latents (B, C, frames, h, w) of one batch of the ``count`` videos, which begin with the ``given`` ones.

    Meanwhile its blocks are written to unfinished-0000.mp4 and so on, which stay until the videos are complete and play
    up to the last block if a process fails.
    """
    world = source.world
    decoders = [decoding(source, number) for number in numbers]
    finished: list[Tensor] = []
    with ExitStack() as stack:
        films = [
            stack.enter_context(
                open_stream(film_path(folder, number, count), world.height, world.width, world.frames_per_second)
            )
            for number in numbers
        ]
        begun = 0 if given is None else given.shape[2]
        clip = [] if given is None else [given.expand(len(numbers), -1, -1, -1, -1)]
        for latents in chain(clip, islice(arrivals, (frames - begun) // source.card.video.block)):
            finished.append(latents.cpu())
            for film, decode, latent in zip(films, decoders, latents, strict=True):
                film(decode(latent))
            progress.advance(len(latents) * latents.shape[2])
    return torch.cat(finished, dim=2)
