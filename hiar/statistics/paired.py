"""Metrics of contenders that share prompts and noise: their means, and their differences video by video."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hiar.errors import UserError, suggest
from hiar.statistics.intervals import Interval, Values, over_seeds, over_videos

VIDEOS = Path("metrics", "videos.jsonl")  # in a workspace

Video = tuple[int, int]  # training seed and number: one prompt and one noise
WHOLE = -1  # in place of a video's number: all videos of a seed together
Scores = dict[str, dict[Video, dict[str, float]]]  # metrics of every video, by contender: STAGE/VARIANT


@dataclass(frozen=True)
class Estimate:
    """A mean over videos and training seeds: of a contender's metric, or of its difference from another's.

    ``seeds``: the mean of each training seed. ``videos``: the interval over videos; ``training``: the interval over
    training seeds; None where there are too few.
    """

    mean: float
    seeds: Mapping[int, float]
    videos: Interval | None
    training: Interval | None


def read_scores(path: Path) -> Scores:
    """The values of metrics/videos.jsonl, one line per video, by contender.

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
                f"{path}: line {number}: video {video[1]} of {name}, seed {video[0]}, appears twice; "
                "run `hiar stage score` again"
            )
        known[video] = metrics
    return scores


def add_wholes(scores: Scores, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add values measured on all videos of a seed together and on no single one, such as VBench's Semantic.

    rows: of metrics/summary.json. There is one such value per training seed, so its uncertainty is that over seeds
    alone.
    """
    for row in rows:
        videos = scores[f"{row['stage']}/{row['variant']}"]
        known = {name for (seed, _), metrics in videos.items() if seed == row["seed"] for name in metrics}
        if alone := {name: one["mean"] for name, one in row["metrics"].items() if name not in known}:
            videos[row["seed"], WHOLE] = alone


def estimate(values: Mapping[int, Values]) -> Estimate:
    """The estimate from values (V,) by training seed."""
    means = {seed: float(group.mean()) for seed, group in values.items()}
    return Estimate(
        mean=float(np.mean(list(means.values()))),
        seeds=means,
        videos=over_videos(values),
        training=over_seeds(list(means.values())),
    )


def values_of(scores: Scores, name: str, metric: str) -> dict[int, Values]:
    """A contender's metric (V,) by training seed, in the order of the videos' numbers.

    Only videos for which it is defined: a dimension of VBench is defined for some prompts alone.
    Raises UserError where there is no such contender, or no video of a training seed has the metric.
    """
    found: dict[int, list[float]] = {}
    for (seed, _), value in _measured(scores, name, metric).items():
        found.setdefault(seed, []).append(value)
    return {seed: np.array(values) for seed, values in found.items()}


def differences(scores: Scores, one: str, other: str, metric: str) -> dict[int, Values]:
    """``one`` minus ``other`` (V,) by training seed, on the same prompts and noise.

    Raises UserError where they are not of the same videos, or one of them lacks the metric.
    """
    first, second = _measured(scores, one, metric), _measured(scores, other, metric)
    if unpaired := sorted(first.keys() ^ second.keys()):
        seed, number = unpaired[0]
        has, lacks = (one, other) if unpaired[0] in first else (other, one)
        raise UserError(
            f"{has}, {lacks}: cannot be paired, video {number} of seed {seed} is only in the first "
            f"({len(unpaired)} such); sample both with the same seeds and sample.videos"
        )
    found: dict[int, list[float]] = {}
    for (seed, number), value in first.items():
        found.setdefault(seed, []).append(value - second[seed, number])
    return {seed: np.array(values) for seed, values in found.items()}


def _measured(scores: Scores, name: str, metric: str) -> dict[Video, float]:
    """A contender's metric by video, in their order, of those that have it. Raises UserError as `values_of` does."""
    if name not in scores:
        raise UserError(f"contender '{name}': has no scores; {suggest(name, scores)}")
    videos = sorted(scores[name].items())
    found = {video: metrics[metric] for video, metrics in videos if metric in metrics}
    if lacking := {seed for (seed, _), _ in videos} - {seed for seed, _ in found}:
        known = sorted({known for (seed, _), metrics in videos if seed in lacking for known in metrics})
        raise UserError(f"{name}: was not scored for {metric}; {suggest(metric, known)}")
    return found


def _row(path: Path, number: int, line: str) -> tuple[str, Video, dict[str, float]]:
    try:
        row: Any = json.loads(line)
        metrics = {str(name): float(value) for name, value in row["metrics"].items()}
        return f"{row['stage']}/{row['variant']}", (int(row["seed"]), int(row["video"])), metrics
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: line {number}: is not a row of scores ({type(error).__name__}: {error}); "
            "run `hiar stage score` again"
        ) from None
