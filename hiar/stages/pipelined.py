"""``hiar sample`` on several processes: the steps of the grid are shared out, and one process more decodes.

Every process is started with the same command line, by ``hiar sample --processes R`` or by torchrun. Rank r < R walks
its share of the steps (`hiar.rollout.pipeline`), rank R is the codec's place: it makes videos of the blocks as they
are finished, and is the only one that writes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hiar.config import Context, Order
from hiar.errors import LOST, RunFailed, UserError
from hiar.io.artifacts import read_manifest, source_hash, unfinished
from hiar.io.progress import Progress, tell
from hiar.io.ranks import RENDEZVOUS
from hiar.io.video import open_stream
from hiar.models.generator import Generator, Walk, load_generator
from hiar.models.kernels import KERNELS, using
from hiar.rollout.cell import Rollout
from hiar.rollout.pipeline import finished_blocks, walk_rank
from hiar.rollout.walk import split_steps
from hiar.stages.plan import attention_kernel, check_memory, plan_line, settle_threads
from hiar.stages.sample import (
    BATCH,
    batches,
    check_request,
    decode,
    finish_samples,
    gather,
    make_batch,
    make_rollout,
    missing_batches,
    sample_key,
)


def sample_on_rank(
    checkpoint: Path,
    prompts: list[str],
    frames: int,
    order: Order | None,
    context: Context | None,
    seed: int,
    out: Path,
    save_latents: bool,
    *,
    stall_seconds: float,
) -> None:
    """Take this process's place; see `stages.sample.sample_prompts` for the rest.

    Raises UserError for what `sample_prompts` refuses, for a walk that cannot be shared out and for processes that
    were not started alike, and RunFailed when another process is gone or silent for ``stall_seconds``.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]) - 1
    settle_threads()
    read_manifest(checkpoint, "checkpoint")
    source = load_generator(checkpoint).to(_device())
    walk = check_request(source, prompts, frames, order, context)
    _check_ranks(source, walk, ranks)
    assert walk is not None
    blocks = frames // source.card.video.block
    key = sample_key(checkpoint, prompts, frames, walk, seed, save_latents)
    with _group(rank, ranks, stall_seconds):
        _check_alike(key, rank)
        text = _encode_once(source, prompts, rank)

        def rollout(numbers: range) -> Rollout:
            part = text[numbers.start : numbers.stop]
            return make_rollout(source, part, walk, blocks, seed, numbers)

        every = batches(len(prompts), BATCH)
        kernel = _agreed(attention_kernel(source, rollout(every[0])) if rank == 0 else None)
        if rank < ranks:
            steps = split_steps(source.card.schedule.student_steps, ranks)[rank]
            check_memory(source, rollout(every[0]), caches=len(steps))
            todo = _told(ranks, None)
            with using(kernel):
                walk_rank(source.denoiser, [rollout(every[index]) for index in todo], rank, ranks)
            return
        tell(plan_line(source, walk, rollout(every[0]), kernel, ranks))
        with unfinished(out, key | {"attention": kernel}, replaces="samples") as folder:
            todo = _told(ranks, missing_batches(folder, len(prompts), BATCH))
            arrivals = finished_blocks([rollout(every[index]) for index in todo], ranks)
            done = frames * (len(prompts) - sum(len(every[index]) for index in todo))
            with Progress("sample", frames * len(prompts), done, unit="frames") as progress:

                def latents_of(numbers: range) -> Tensor:
                    return _collect(folder, source, arrivals, numbers, blocks, progress)

                for index, numbers in enumerate(every):
                    make_batch(folder, source, index, numbers, latents_of)
            gather(folder, prompts, BATCH, save_latents)
            finish_samples(folder, checkpoint, source, walk, frames, seed)


def _collect(
    folder: Path, source: Generator, arrivals: Iterator[Tensor], numbers: range, blocks: int, progress: Progress
) -> Tensor:
    """Latents (B, C, F, h, w) of a batch. Meanwhile its blocks can be watched in files that are gone when it is whole.

    They stay when a process breaks down: unfinished-0000.mp4 and so on play up to the last block.
    """
    paths = [folder / f"unfinished-{number:04d}.mp4" for number in numbers]
    size, rate = source.card.world.size, source.card.world.frames_per_second
    finished = []
    with ExitStack() as stack:
        films = [stack.enter_context(open_stream(path, size, size, rate)) for path in paths]
        for latents in islice(arrivals, blocks):
            finished.append(latents.cpu())
            for film, latent in zip(films, latents, strict=True):
                film(decode(source, latent))
            progress.advance(len(latents) * latents.shape[2])
    for path in paths:
        path.unlink()
    return torch.cat(finished, dim=2)


@contextmanager
def _group(rank: int, ranks: int, stall_seconds: float) -> Iterator[None]:
    """The process group, for the length of the body; whatever it fails with means that another process is lost."""
    place = os.environ.get(RENDEZVOUS)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(
            backend,
            init_method=f"file://{place}" if place else "env://",
            rank=rank,
            world_size=ranks + 1,
            timeout=timedelta(seconds=stall_seconds),
        )
        yield
        dist.barrier()
        dist.destroy_process_group()
    except (RuntimeError, dist.DistError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(
            f"process {rank} of {ranks} lost another one, or waited {stall_seconds:g} s for it ({reason}); finished "
            "blocks are kept, the same command goes on from here",
            LOST,
        ) from error


def _check_ranks(source: Generator, walk: Walk | None, ranks: int) -> None:
    """Raise UserError when the walk cannot be shared out among ``ranks`` processes."""
    if walk is None:
        raise UserError("--processes: the teacher is bidirectional and has no steps to share out; leave it out")
    if walk.context == "shared" or (walk.order == "block_first" and walk.context == "clean"):
        raise UserError(
            f"--processes = {ranks}: order {walk.order} with {walk.context} context waits for whole blocks, so its "
            "steps cannot be shared out; leave it out, or use --order diagonal --context output"
        )
    steps = source.card.schedule.student_steps
    if not 1 <= ranks <= steps:
        raise UserError(f"--processes = {ranks}: the student takes {steps} steps; use 1 to {steps}")


def _check_alike(key: dict[str, Any], rank: int) -> None:
    """Raise UserError on every rank when they were not started with the same checkpoint, options and code."""
    facts = {"checkpoint": key["checkpoint"], "command": key, "code": source_hash()}
    digests = {name: hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).digest() for name, fact in facts.items()}
    own = torch.frombuffer(bytearray(b"".join(digests.values())), dtype=torch.uint8).to(_device())
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, own)
    for other, theirs in enumerate(everyone):
        for name, start in zip(digests, range(0, len(own), 32), strict=True):
            if not torch.equal(theirs[start : start + 32], everyone[0][start : start + 32]):
                raise UserError(f"process {other}: {name}: not that of process 0; start all processes alike")


def _encode_once(source: Generator, prompts: list[str], rank: int) -> Tensor:
    """Text embeddings (prompts, words, dim), computed by rank 0 for all."""
    if rank == 0:
        text = source.embed(prompts)
        shape = torch.tensor(text.shape, device=text.device)
    else:
        shape = torch.empty(3, dtype=torch.long, device=_device())
    dist.broadcast(shape, 0)
    if rank != 0:
        text = torch.empty(tuple(shape.tolist()), device=_device())
    dist.broadcast(text, 0)
    return text


def _told(teller: int, todo: list[int] | None) -> list[int]:
    """The batches that are still to be made, as the rank that writes them knows."""
    count = torch.tensor([len(todo or [])], device=_device())
    dist.broadcast(count, teller)
    numbers = torch.tensor(todo or [0] * int(count), dtype=torch.long, device=_device())
    dist.broadcast(numbers, teller)
    return numbers.tolist()


def _agreed(kernel: str | None) -> str | None:
    """The attention kernel of process 0, for all."""
    names = [None, *KERNELS]
    choice = torch.tensor([names.index(kernel)], device=_device())
    dist.broadcast(choice, 0)
    return names[int(choice)]


def _device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
