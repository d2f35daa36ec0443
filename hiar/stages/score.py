"""Score samples with the oracle of the built-in world: those of the experiment, or any folder of videos."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor

from hiar.config import Count, Params, Score, World
from hiar.errors import UserError
from hiar.io.artifacts import MANIFEST, Facts, facts, read_manifest, write_json
from hiar.io.files import json_text
from hiar.io.names import by_number
from hiar.io.outputs import Output, write_output
from hiar.io.progress import Progress, tell
from hiar.io.reading import PART
from hiar.io.tracking import tracked
from hiar.metrics.motion import LEAST_FRAMES
from hiar.metrics.summary import Summary, summarise
from hiar.metrics.world import Looks, look, measured
from hiar.parameters import load_params
from hiar.stages.common import write_log
from hiar.stages.comparison import (
    CAPTIONS,
    SAMPLES,
    check_videos,
    contenders,
    find_videos,
    read_captions,
    read_videos,
    too_short,
)
from hiar.stages.truth import write_true_videos
from hiar.world.captions import parse_caption
from hiar.world.fit import atlases
from hiar.world.oracle import Judgement, judge

FEW = 16  # findings of parts that lie about at a time: the memory between many small ones is lost

_Found = TypeVar("_Found", Judgement, Looks)


def run(params: Params, workspace: Path) -> None:
    """Score every contender of ``params`` and the true world.

    Writes metrics/summary.json, a row a contender, and metrics/world.json, a row a seed: what was scored and how, and
    the metrics of the world's own clips of the same captions, through codec and h264 like the samples. Raises UserError
    when samples are missing, altered, or too short.
    """
    began = time.monotonic()
    torch.set_num_threads(params.runtime.threads)
    summary = workspace / "metrics" / "summary.json"
    everything = [(contender, contender.samples(workspace)) for contender in contenders(params)]
    for _, folder in everything:
        read_manifest(folder, SAMPLES)
    inputs = [(contender, _checked(folder, params.world, params.score)) for contender, folder in everything]
    with tracked("score", None, None, params, workspace) as run:
        rows = []
        for contender, samples in inputs:
            metrics, _ = _score_samples(samples, params.world, params.score, params.video.block)
            rows.append({**asdict(contender), "metrics": metrics})
            place = f"{contender.stage}/{contender.variant}/seed-{contender.seed}"
            run.log(0, {f"{place}/{name}": figure["mean"] for name, figure in metrics.items()})
        truth = [
            {
                "seed": seed,
                "protocol": _protocol(params.world, params.score, params.video.block),
                "metrics": _true_world(params, workspace, seed),
            }
            for seed in params.seeds
        ]
        write_json(summary, rows)
        write_json(workspace / "metrics" / "world.json", truth)
        run.artifact(summary)
    write_log(workspace, "score", params, began, stage="score")


def score_folder(folder: Path, out: Output, workspace: Path = Path()) -> None:
    """Score a folder of ``NAME.mp4`` videos, by name and number in order, with a caption a line in captions.txt.

    World and block come from the folder's manifest where it has one, else from params.yaml of the ``workspace``, as the
    thresholds always do; ``out`` holds them beside the metrics.

    Raises UserError naming what is missing, truncated, of another size, not what the manifest says, or does not fit the
    captions.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds mp4 videos and {CAPTIONS}")
    params = load_params(workspace / "params.yaml")
    torch.set_num_threads(params.runtime.threads)
    world, block = _geometry(folder, params)
    samples = _checked(folder, world, params.score)
    if pair := by_number(samples.paths):
        tell(f"score {folder}: captions go to videos by their numbers, {pair[0].name} comes before {pair[1].name}")
    metrics, frames = _score_samples(samples, world, params.score, block)
    result = {
        "protocol": _protocol(world, params.score, block),
        "videos": len(samples.captions),
        "frames": frames,
        "metrics": metrics,
    }
    write_output(out, json_text(result))


def score(
    videos: Iterable[Iterable[Tensor]],
    captions: Sequence[str],
    world: World,
    thresholds: Score,
    block: int,
    source: Path | str,
    frames: int | None = None,
) -> tuple[dict[str, Summary], int]:
    """Summaries by metric of videos, each in parts uint8 (f, H, W, 3), a caption each, and their number of frames.

    Only a part is held at a time, or a few videos that are shorter than one. ``source`` is what errors and the progress
    line name; ``frames`` of a video, where they are known, tell the line its end.
    Raises UserError for captions that are not this world's and videos that are too short.
    """
    for caption in captions:
        parse_caption(world, caption)
    tables, least = atlases(world), least_frames(thresholds)
    found: list[dict[str, Tensor]] = []
    done = length = 0
    with Progress(f"score {source}", frames and frames * len(captions), unit="frames") as progress:
        for batch in _batches(videos):
            judgements: list[Judgement] = []
            looks: list[Looks] = []
            before, length = None, 0
            for part in batch:
                asked = captions[done : done + len(part)]
                judgements.append(judge(world, part, asked, tables))
                looks.append(look(part, before))
                before, length = part[:, -1:].clone(), length + part.shape[1]
                if len(looks) == FEW:
                    judgements, looks = [_joined(judgements)], [_joined(looks)]
                progress.advance(len(part) * part.shape[1])
            if length < least:
                raise UserError(too_short(source, length, least))
            found.append(measured(_joined(looks), _joined(judgements), world, thresholds, block))
            done += len(asked)
    return {name: summarise(torch.cat([one[name] for one in found])) for name in found[0]}, length


@dataclass(frozen=True)
class _Samples:
    """A folder of videos that may be scored, as far as can be told without decoding them."""

    folder: Path
    captions: list[str]
    paths: list[Path]
    frames: int | None


def _checked(folder: Path, world: World, thresholds: Score) -> _Samples:
    captions = read_captions(folder)
    for caption in captions:
        parse_caption(world, caption)
    paths = find_videos(folder, len(captions))
    return _Samples(folder, captions, paths, check_videos(folder, paths, world.size, least_frames(thresholds)))


def _score_samples(samples: _Samples, world: World, thresholds: Score, block: int) -> tuple[dict[str, Summary], int]:
    videos = read_videos(samples.paths)
    return score(videos, samples.captions, world, thresholds, block, samples.folder, samples.frames)


def least_frames(thresholds: Score) -> int:
    """How many frames a video must have to be scored."""
    return max(LEAST_FRAMES, thresholds.segments)


def _batches(videos: Iterable[Iterable[Tensor]]) -> Iterator[Iterable[Tensor]]:
    """Videos of parts (f, H, W, 3) as batches of parts (V, f, H, W, 3).

    Short ones are together, which the oracle is faster at; long ones alone, part by part.
    """
    short: list[Tensor] = []
    for video in videos:
        parts = iter(video)
        first = next(parts)
        if len(first) >= PART:
            yield (part[None] for part in chain([first], parts))
        else:
            short.append(torch.cat([first, *parts]))
            if (len(short) + 1) * len(short[0]) > PART:
                yield [torch.stack(short)]
                short = []
    if short:
        yield [torch.stack(short)]


def _joined(parts: Sequence[_Found]) -> _Found:
    """What was found in one part of some videos after the other, in whole videos."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*(torch.cat(column, dim=1) for column in columns))


def _true_world(params: Params, workspace: Path, seed: int) -> dict[str, Summary]:
    """The metrics of the clips whose captions are the samples' prompts, made as the samples are."""
    sample, block = params.sample, params.video.block
    with TemporaryDirectory() as scratch:
        captions = write_true_videos(params, workspace, seed, sample.videos, Path(scratch))
        videos = read_videos(find_videos(Path(scratch), sample.videos))
        metrics, _ = score(videos, captions, params.world, params.score, block, "the true world", sample.frames)
    return metrics


def _protocol(world: World, thresholds: Score, block: int) -> dict[str, Any]:
    """What the videos were scored against."""
    return {
        "world": world.model_dump(mode="json"),
        "score": thresholds.model_dump(mode="json"),
        "block": block,
    }


def _geometry(folder: Path, params: Params) -> tuple[World, int]:
    """World and block of the videos of a folder: of its manifest where it has one, else of ``params``."""
    if not os.path.lexists(folder / MANIFEST):
        return params.world, params.video.block
    geometry = facts(folder, read_manifest(folder, SAMPLES), _Geometry)
    return geometry.world, geometry.block


class _Geometry(Facts):
    world: World
    block: Count
