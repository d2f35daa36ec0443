"""Score the samples of an experiment by the judge of their world."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hiar import config
from hiar.config import Count, Params
from hiar.errors import UserError
from hiar.io.artifacts import MANIFEST, Facts, facts, read_manifest
from hiar.io.cpu import settle_cpu
from hiar.io.files import json_line, write_json, write_text
from hiar.io.progress import Progress
from hiar.io.reading import PART
from hiar.judges.interface import Judge, open_judge
from hiar.metrics.summary import Figures, Summary, summarise
from hiar.profiles.profile import Profile
from hiar.profiles.registry import open_profiles
from hiar.stages import drift
from hiar.stages.common import write_log
from hiar.stages.comparison import (
    SAMPLES,
    check_videos,
    contenders,
    find_videos,
    nested,
    read_captions,
    read_videos,
    too_short,
)
from hiar.stages.drift import check_sizes, drift_of_samples
from hiar.stages.looking import look_through
from hiar.stages.truth import write_true_videos
from hiar.stages.vbench import vbench_figures
from hiar.tracking.figures import record_figures
from hiar.tracking.stage import tracked
from hiar.worlds.interface import open_world

WORLD = {"stage": "world", "variant": "world", "order": None, "context": None}  # fields of its lines in videos.jsonl


def run(params: Params, workspace: Path) -> None:
    """Score every contender of ``params`` and the true world.

    Writes metrics/summary.json, `nested` by contender, and metrics/world.json, one row per seed: what was scored and
    how, and the metrics of the world's own clips of the same captions, through codec and h264 like the samples.
    metrics/videos.jsonl has one line per video of either, whose seed and number pair it with those of other contenders.
    Both include the drift profiles in ``score.profiles``, with their records in metrics/profiles.json; contenders
    include the VBench dimensions in ``score.vbench`` as stage vbench scored them, with what made these values in
    metrics/vbench.json.
    Raises UserError when samples are missing, altered, or too short.
    """
    began = time.monotonic()
    settle_cpu(params.runtime.threads)
    summary, vbench = workspace / "metrics" / "summary.json", params.score.vbench
    profiles = open_profiles(params.score.profiles, None) if params.score.profiles else []
    world = open_world(params.world)
    check_sizes(profiles, world.height, world.width)
    everything = [(contender, contender.samples(workspace)) for contender in contenders(params)]
    for _, folder in everything:
        read_manifest(folder, SAMPLES)
    inputs = []
    for contender, folder in everything:
        protocol = replace(protocol_of(folder, params), world=params.world)
        inputs.append((contender, protocol, _checked(folder, protocol, profiles)))
    with tracked("score", None, None, params, workspace) as run:
        rows, videos, made = [], [], {}
        for contender, protocol, samples in inputs:
            values = _score_samples(samples, protocol)
            metrics, each = summaries(values), _each_video(asdict(contender), values)
            place = samples.folder.relative_to(workspace / "artifacts")
            if profiles:
                kept = workspace / drift.RECORDS / place.parent / f"{place.name}.jsonl"
                _add(metrics, each, drift_of_samples(samples.folder, samples.paths, profiles, kept))
            if vbench:
                found = vbench_figures(contender, samples.paths, vbench, workspace)
                _add(metrics, each, found)
                made[str(place)] = found.facts
            rows.append({**asdict(contender), "metrics": metrics})
            videos += each
        truth = []
        if world.has_clips:
            protocol = Protocol(params.world, params.score, params.video.block, params.video.block)
            for seed in params.seeds:
                metrics, each = _true_world(params, protocol, workspace, seed, profiles)
                truth.append({"seed": seed, "protocol": protocol.record(), "metrics": metrics})
                videos += each
        write_json(summary, nested(rows))
        write_json(workspace / "metrics" / "world.json", truth)
        write_json(workspace / "metrics" / "profiles.json", {profile.name: profile.record for profile in profiles})
        write_json(workspace / "metrics" / "vbench.json", made)
        write_text(workspace / "metrics" / "videos.jsonl", "".join(json_line(video) for video in videos))
        run.artifact(summary)
    record_figures(params, workspace, rows)
    write_log(workspace, "score", params, began, stage="score")


@dataclass(frozen=True)
class Protocol:
    """What videos are scored against; ``first_block``: pictures of a video's first block, ``block``: of any other."""

    world: config.World
    score: config.Score
    first_block: int
    block: int

    def judge(self) -> Judge:
        """The judge that scores by it."""
        return open_judge(self.world, self.score, self.first_block, self.block)

    def record(self) -> dict[str, Any]:
        """The protocol as JSON values, for files."""
        sections = {name: getattr(self, name).model_dump(mode="json") for name in ("world", "score")}
        return sections | {"first_block": self.first_block, "block": self.block}


def protocol_of(folder: Path, params: Params) -> Protocol:
    """The protocol for a folder's videos: world and blocks of its manifest where it has one, else of ``params``.

    Raises UserError for a manifest that is not of samples, or not whole.
    """
    block = params.video.block
    if not os.path.lexists(folder / MANIFEST):
        return Protocol(params.world, params.score, block, block)
    said = facts(folder, read_manifest(folder, SAMPLES), _Geometry)
    return Protocol(said.world, params.score, said.first_block or said.block, said.block)


class _Geometry(Facts):
    world: config.World
    first_block: Count | None = None  # null: as the others
    block: Count


def score(
    videos: Iterable[Iterable[Tensor]],
    captions: Sequence[str],
    judge: Judge,
    source: Path | str,
    frames: int | None = None,
) -> dict[str, Tensor]:
    """Metrics (V,) by name of V videos, each in parts uint8 (f, H, W, 3), with one caption each.

    Only one part is in memory at a time, or a few videos shorter than a part. ``source``: named in errors and the
    progress line; ``frames``: of each video, if known, for the total of that line.
    Raises UserError for captions that are not the judge's world's and videos that are too short.
    """
    found: list[dict[str, Tensor]] = []
    done = 0
    with Progress(f"score {source}", frames and frames * len(captions), unit="frames") as progress:
        for batch in _batches(videos):
            (findings,), length = look_through(batch, [judge], captions[done:], progress.advance)
            if length < judge.least_frames:
                raise UserError(too_short(source, length, judge.least_frames))
            found.append(judge.measure(findings))
            done += len(next(iter(findings.values())))
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def summaries(values: Mapping[str, Tensor]) -> dict[str, Summary]:
    """Mean, standard error and count over the videos of each metric (V,)."""
    return {name: summarise(one) for name, one in values.items()}


def _each_video(contender: Mapping[str, Any], values: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The lines of one contender's videos in videos.jsonl."""
    columns = {name: one.tolist() for name, one in values.items()}
    return [
        {**contender, "video": number, "metrics": dict(zip(columns, metrics, strict=True))}
        for number, metrics in enumerate(zip(*columns.values(), strict=True))
    ]


def _add(metrics: dict[str, Summary], videos: Sequence[dict[str, Any]], found: Figures) -> None:
    """Add further metrics of the same videos."""
    metrics |= found.metrics
    for video, own in zip(videos, found.values, strict=True):
        video["metrics"] |= own


def checked_captions(folder: Path, protocol: Protocol) -> list[str]:
    """The captions of a folder. Raises UserError for those that are not of the protocol's world."""
    captions, world = read_captions(folder), open_world(protocol.world)
    for caption in captions:
        world.check(caption)
    return captions


@dataclass(frozen=True)
class _Samples:
    """A folder of videos to score, checked as far as possible without decoding them."""

    folder: Path
    captions: list[str]
    paths: list[Path]
    frames: int | None


def _checked(folder: Path, protocol: Protocol, profiles: Sequence[Profile]) -> _Samples:
    captions, world = checked_captions(folder, protocol), open_world(protocol.world)
    paths = find_videos(folder, len(captions))
    least = max(protocol.judge().least_frames, *(profile.observer.least_frames for profile in profiles), 0)
    frames = check_videos(folder, paths, (world.height, world.width), least)
    return _Samples(folder, captions, paths, frames)


def _score_samples(samples: _Samples, protocol: Protocol) -> dict[str, Tensor]:
    return score(read_videos(samples.paths), samples.captions, protocol.judge(), samples.folder, samples.frames)


def _batches(videos: Iterable[Iterable[Tensor]]) -> Iterator[Iterable[Tensor]]:
    """Videos of parts (f, H, W, 3) as batches of parts (V, f, H, W, 3).

    Short videos are batched, which is faster with the oracle; long ones come alone, part by part.
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


def _true_world(
    params: Params, protocol: Protocol, workspace: Path, seed: int, profiles: Sequence[Profile]
) -> tuple[dict[str, Summary], list[dict[str, Any]]]:
    """The metrics and the videos' lines of the world's clips for the samples' prompts, encoded like the samples."""
    sample = params.sample
    with TemporaryDirectory() as scratch:
        captions = write_true_videos(params, workspace, seed, sample.videos, Path(scratch))
        paths = find_videos(Path(scratch), sample.videos)
        values = score(read_videos(paths), captions, protocol.judge(), "the true world", sample.frames)
        metrics, each = summaries(values), _each_video({**WORLD, "seed": seed}, values)
        if profiles:
            _add(metrics, each, drift_of_samples(Path(scratch), paths, profiles, None))
    return metrics, each
