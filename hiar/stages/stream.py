"""``hiar stream``: a video of any length, each block written as soon as it is clean."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.grid import fastest
from hiar.io.artifacts import read_manifest
from hiar.io.cpu import settle_cpu
from hiar.io.outputs import Output
from hiar.io.progress import Progress, tell
from hiar.io.text import one_line
from hiar.io.video import open_stream
from hiar.models.card import Walk
from hiar.models.generator import Generator
from hiar.rollout.cell import Rollout
from hiar.rollout.renewed import walk_renewed
from hiar.rollout.walk import walk as walk_grid
from hiar.stages.clips import given_latents
from hiar.stages.computing import choose, computing
from hiar.stages.fitting import Way, way_of
from hiar.stages.plan import load_asked, plan_line
from hiar.stages.prompted import check_request
from hiar.stages.request import Request
from hiar.stages.rollouts import make_rollout
from hiar.stages.videos import decoding_ahead
from hiar.transfer import arrivals, lead


def stream(request: Request, changes: Sequence[str], target: Output, renew: bool = False) -> None:
    """Write a video block by block, the same that `hiar sample` makes of the request's single prompt.

    changes: FRAME=PROMPT each, the prompt from that frame on. renew: contexts are recomputed there, see
    `hiar.rollout.renewed`. Without ``frames`` the video is endless; SIGINT ends it after the current block. Memory and
    time per block do not grow.

    Raises UserError for a bad checkpoint, prompt, change or number of frames, before anything is written, and when the
    target cannot be written or its reader has gone. Raises KeyboardInterrupt if SIGINT came before all ``frames``.
    """
    settle_cpu()
    read_manifest(request.checkpoint, "checkpoint")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = load_asked(request, device)
    if source.card.stage == "teacher":
        raise UserError(
            f"--checkpoint = {request.checkpoint}: is a teacher, which makes whole clips; "
            "name an init or a distilled student"
        )
    block, world, frames = source.card.video.block, source.world, request.frames
    prompts = change_prompts(changes, block, frames)
    (prompt,) = request.prompts
    walk, _ = check_request(source, replace(request, prompts=[prompt, *prompts.values()]))
    assert walk is not None
    given = given_latents(source, request)
    rollout = stream_rollout(source, prompt, prompts, walk, frames, request.seed, given)
    way = way_of(source, walk, rollout, together=True)
    choice = choose(source, walk, rollout)
    tell(plan_line(source, walk, rollout, choice, way))
    done = 0
    with (
        computing(source.denoiser, choice),
        interruptions() as interrupted,
        open_stream(target, world.height, world.width, world.frames_per_second, request.crf) as add,
        Progress("stream", frames, unit="frames") as progress,
    ):
        decode = decoding_ahead(source)
        first: float | None = None
        last = time.monotonic()
        blocks = clean_blocks(source, walk, rollout, given, way, renew)
        for pictures in arrivals(map(decode, blocks), lead(source.device)):
            try:
                add(pictures)
            except UserError as error:
                if interrupted and isinstance(error.__cause__, BrokenPipeError):
                    break  # Ctrl-C reaches the reader of a pipe too
                raise
            done += block
            latency = time.monotonic() - last
            last += latency
            first = first or latency
            progress.advance(block, {"first block (s)": first, "block (s)": latency})
            if interrupted:
                break
    if frames is not None and done < frames:
        raise KeyboardInterrupt


def stream_rollout(
    source: Generator,
    prompt: str,
    changes: Mapping[int, str],
    walk: Walk,
    frames: int | None,
    seed: int,
    given: Tensor | None = None,
) -> Rollout:
    """The rollout of sample 0, endless when ``frames`` is None; ``changes``: prompts by the block they apply from."""
    texts = {block: source.embed([text]) for block, text in changes.items()}
    return make_rollout(source, source.embed([prompt]), walk, frames, seed, [0], texts, given)


@torch.no_grad()
def clean_blocks(
    source: Generator,
    walk: Walk,
    rollout: Rollout,
    given: Tensor | None = None,
    way: Way | None = None,
    renew: bool = False,
) -> Iterator[Tensor]:
    """Latents (C, k, h, w) of the rollout's only video, each block as it is finished, ``given`` ones first.

    way: how the grid is walked, None for the fastest way. renew: see `hiar.rollout.renewed`.
    """
    order, passes = way[:2] if way else fastest(walk.context)
    if given is not None:
        yield from given[0].split(source.card.video.block, dim=1)
    walked = (walk_renewed if renew else walk_grid)(source.denoiser, rollout, order, given, passes=passes)
    for _, latent in source.in_turn(source.denoiser, walked):
        yield latent[0]


def change_prompts(changes: Sequence[str], block: int, frames: int | None) -> dict[int, str]:
    """Prompts by the block from which they apply, of changes FRAME=PROMPT in a video of ``frames`` frames.

    Raises UserError for a malformed change, one at the first frame, past the end or inside a block of ``block`` frames,
    and for two at one frame.
    """
    prompts: dict[int, str] = {}
    for change in changes:
        number, _, prompt = (one_line(part) for part in change.partition("="))
        if not (number.isdecimal() and prompt):
            raise UserError(f"--change = {change}: is not FRAME=PROMPT; write one like '{20 * block}=a red disc moves'")
        frame = int(number)
        if frame == 0:
            raise UserError(f"--change = {change}: frame 0 is where the video starts; give this prompt with --prompt")
        if frame % block:
            borders = [border for border in (frame - frame % block, frame - frame % block + block) if border > 0]
            raise UserError(
                f"--change = {change}: frame {frame} is inside a block of {block} frames; "
                f"use {' or '.join(map(str, borders))}"
            )
        if frames is not None and frame >= frames:
            raise UserError(f"--change = {change}: the video ends earlier, after {frames} frames; raise --frames")
        if frame // block in prompts:
            raise UserError(f"--change = {change}: frame {frame} already has another prompt; leave one of them out")
        prompts[frame // block] = prompt
    return prompts


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """SIGINT does not interrupt the body but is added to this list; a second one interrupts as usual."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
