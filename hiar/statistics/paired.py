"""Two contenders that share prompts and noise, compared video by video."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hiar.errors import UserError, suggest
from hiar.statistics.intervals import Interval, Values, over_seeds, over_videos

VIDEOS = Path("metrics", "videos.jsonl")  # in a workspace

Video = tuple[int, int]  # training seed and number: one prompt and one noise
Scores = dict[str, dict[Video, dict[str, float]]]  # metrics of every video, by contender: STAGE/VARIANT


@dataclass(frozen=True)
class Difference:
    """One contender's metric minus another's.

    ``seeds``: the mean of each training seed. ``videos`` says how far other videos would land, ``training`` how far
    another training seed would; None where there are too few to tell.
    """

    mean: float
    seeds: Mapping[int, float]
    videos: Interval | None
    training: Interval | None


def read_scores(path: Path) -> Scores:
    """The values of metrics/videos.jsonl, a line a video, by contender.

    Raises UserError when it cannot be read, is not in that form, or holds a video twice.
    """
    scores: Scores = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: cannot be read; run `hiar stage score` first") from None
    for number, line in enumerate(lines, start=1):
        name, video, metrics = _row(path, number, line)
        known = scores.setdefault(name, {})
        if video in known:
            raise UserError(
                f"{path}: line {number}: video {video[1]} of {name}, seed {video[0]}, is there twice; "
                "run `hiar stage score` again"
            )
        known[video] = metrics
    return scores


def difference(scores: Scores, one: str, other: str, metric: str) -> Difference:
    """``one`` minus ``other``, video by video.

    Raises UserError where they are not of the same videos, or one of them lacks the metric.
    """
    pairs = paired(scores, one, other, metric)
    means = {seed: float(values.mean()) for seed, values in pairs.items()}
    return Difference(
        mean=float(np.mean(list(means.values()))),
        seeds=means,
        videos=over_videos(pairs),
        training=over_seeds(list(means.values())),
    )


def paired(scores: Scores, one: str, other: str, metric: str) -> dict[int, Values]:
    """Differences (V,) by training seed of two contenders' values on the same prompts and noise."""
    first, second = _of(scores, one), _of(scores, other)
    if unpaired := sorted(first.keys() ^ second.keys()):
        seed, number = unpaired[0]
        has, lacks = (one, other) if unpaired[0] in first else (other, one)
        raise UserError(
            f"{has}, {lacks}: cannot be paired, video {number} of seed {seed} is of the first alone "
            f"({len(unpaired)} such); sample both with the same seeds and sample.videos"
        )
    found: dict[int, list[float]] = {}
    for video in sorted(first):
        for name, metrics in ((one, first[video]), (other, second[video])):
            if metric not in metrics:
                raise UserError(f"{name}: was not scored for {metric}; {suggest(metric, metrics)}")
        found.setdefault(video[0], []).append(first[video][metric] - second[video][metric])
    return {seed: np.array(values) for seed, values in found.items()}


def _of(scores: Scores, name: str) -> dict[Video, dict[str, float]]:
    if name not in scores:
        raise UserError(f"contender '{name}': has no scores; {suggest(name, scores)}")
    return scores[name]


def _row(path: Path, number: int, line: str) -> tuple[str, Video, dict[str, float]]:
    try:
        row: Any = json.loads(line)
        metrics = {str(name): float(value) for name, value in row["metrics"].items()}
        return f"{row['stage']}/{row['variant']}", (int(row["seed"]), int(row["video"])), metrics
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: line {number}: is no row of scores ({type(error).__name__}: {error}); "
            "run `hiar stage score` again"
        ) from None
