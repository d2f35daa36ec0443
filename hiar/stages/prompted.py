"""``hiar sample``: one video per prompt, made by one process, or by several that share the videos."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.io.artifacts import is_made, key_hash, partial_of, read_manifest, unfinished, write_manifest
from hiar.io.cpu import settle_cpu
from hiar.io.launcher import own_place
from hiar.io.process_group import ALONE, Ranks, gathered
from hiar.io.progress import tell
from hiar.models.card import Walk
from hiar.models.generator import Generator
from hiar.rollout.cell import Rollout
from hiar.stages.clips import given_latents
from hiar.stages.computing import computing
from hiar.stages.definition import code_hash
from hiar.stages.fitting import check_frames, way_of
from hiar.stages.group import check_alike
from hiar.stages.plan import load_asked, number_format, settled
from hiar.stages.request import Request
from hiar.stages.rollouts import make_rollout, walk_asked
from hiar.stages.sample import describe, make_videos
from hiar.stages.videos import batches, write_captions

BATCH = 16  # videos generated at a time
MADE = "{}: is complete already, by the same command; remove it to make it again"


def sample_prompts(
    request: Request, out: Path, save_latents: bool, copies: int | None = None, stall_seconds: float = 600.0
) -> None:
    """Write one video per prompt into ``out``, walking the grid as trained unless the request says otherwise.

    copies: this process is one of so many that were started alike. Each has all networks, on a device of its own, and
    makes its share of the videos, which are the same as one process makes; the first makes all choices and writes the
    manifest. Raises UserError for a bad checkpoint, prompt, number of frames or folder (nothing is written then), and
    RunFailed when another process is gone, or silent for ``stall_seconds``.
    """
    settle_cpu()
    prompts = request.prompts
    with _share(copies, stall_seconds) as ranks, ExitStack() as stack:
        most = min(BATCH, -(-len(prompts) // ranks.size))
        with ranks.agreed():
            read_manifest(request.checkpoint, "checkpoint")
            source = load_asked(request, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            walk, frames = check_request(source, request)
            check_frames(source, frames, len(prompts), most, out, save_latents, beside=ranks.size)
            given = given_latents(source, request)
        key = sample_key(source, request, walk, given, save_latents)
        if ranks.size > 1:
            check_alike(key, ranks.device, ranks.gather)
        if ranks.told(is_made(out, "samples", key)):
            if ranks.leads:
                tell(MADE.format(out))
            return

        def rollout(numbers: range) -> Rollout:
            text = source.embed(prompts[numbers.start : numbers.stop])
            assert walk is not None
            return make_rollout(source, text, walk, frames, request.seed, numbers, given=given)

        way = None
        with ranks.agreed():
            source.prepare(prompts)
            if walk is not None and ranks.leads:
                way = way_of(source, walk, rollout(range(1)), most, beside=ranks.size)
        folder = partial_of(out)
        with ranks.agreed():
            if ranks.leads:
                batch = {} if walk else {"batch": most}
                folder = stack.enter_context(unfinished(out, key | batch, replaces="samples"))
        if walk is not None:
            way, choice = settled(folder, source, walk, rollout, len(prompts), way, ranks)
            if ranks.leads and ranks.size > 1:
                every = len(batches(len(prompts), way.videos))
                tell(f"copies: {every} batch(es) of videos are split over {ranks.size} processes")
            stack.enter_context(computing(source.denoiser, choice))
        make_videos(
            folder,
            source,
            prompts,
            frames,
            walk,
            request.seed,
            way.videos if way else most,
            "sample",
            save_latents=save_latents,
            given=given,
            crf=request.crf,
            way=way,
            ranks=ranks,
        )
        if ranks.leads:
            write_captions(folder, request.names, prompts)
            finish_samples(folder, source, request, walk, frames, key)


@contextmanager
def _share(copies: int | None, stall_seconds: float) -> Iterator[Ranks]:
    """The place of this process among those that share the videos, for the length of the body."""
    if copies is None:
        yield ALONE
        return
    place = own_place() or (0, 1)
    if place[1] != copies:
        raise UserError(f"--copies = {copies}: the launcher has started {place[1]} process(es); give that number")
    remedy = "last whole batch; if no process died, raise --stall-seconds"
    with gathered(place, "auto", stall_seconds, remedy) as ranks:
        yield ranks


def check_request(source: Generator, request: Request) -> tuple[Walk | None, int]:
    """The walk of a request, as trained unless it says otherwise, and its number of frames (endless: one block).

    A teacher's walk is None. Raises UserError if ``source`` cannot do what is requested.
    """
    for prompt in request.prompts:
        source.world.check(prompt)
    block = source.card.video.block
    frames = block if request.frames is None else request.frames
    if source.card.stage == "teacher":
        if request.order or request.context or request.level is not None:
            raise UserError(
                "--order, --context, --level: the teacher is bidirectional and walks no grid; leave them out"
            )
        if frames != source.card.video.frames:
            raise UserError(
                f"--frames = {frames}: the teacher makes clips of {source.card.video.frames} frames; use that number"
            )
        return None, frames
    walk = walk_asked(source.card, request.order, request.context, request.level)
    if frames < block or frames % block:
        nearest = max(block, round(frames / block) * block)
        raise UserError(
            f"--frames = {frames}: must be a positive multiple of the block of {block} frames; try {nearest}"
        )
    return walk, frames


def sample_key(
    source: Generator, request: Request, walk: Walk | None, given: Tensor | None, save_latents: bool
) -> dict[str, Any]:
    """What decides the content of a folder of samples; ``source`` is the loaded checkpoint, on its device."""
    digest = None if given is None else hashlib.sha256(given.float().cpu().numpy().tobytes()).hexdigest()
    return {
        "checkpoint": source.content,
        "code": code_hash("sample", source.card.world.kind),
        "computes": f"{source.device.type}, {number_format(source)}",
        "prompts": list(request.prompts),
        "captions": list(request.names),
        "frames": request.frames,
        "size": [source.world.height, source.world.width],
        "crf": request.crf,
        "given": digest,
        "seed": request.seed,
        "latents": save_latents,
        "walk": walk.model_dump() if walk else None,
    }


def finish_samples(
    folder: Path, source: Generator, request: Request, walk: Walk | None, frames: int, key: Mapping[str, Any]
) -> None:
    """Write the manifest of a folder of samples that is otherwise complete; ``key``: see `sample_key`."""
    facts = {"stage": "sample", "seed": request.seed, "variant": source.card.variant, "model": source.card.stage}
    facts["generated_with"] = "short" if request.captions is None else "extended"  # prompts; captions are always short
    facts["key"] = key_hash(key)
    parents = {"checkpoint": source.content}
    write_manifest(folder, "samples", parents=parents, **facts, **describe(source, walk, frames))
