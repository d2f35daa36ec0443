"""Drift of an experiment's samples, for its scores: the same profiles and records as `hiar score --profile`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hiar.errors import UserError
from hiar.io.files import file_hash, writing
from hiar.io.reading import read_head
from hiar.metrics.summary import Figures, summarise
from hiar.profiles.profile import Profile
from hiar.stages.profile_values import Video, keep_only, score_videos

RECORDS = Path(".hiar", "profiles")  # in a workspace: results by video, so that none is computed twice
SHOWN = "_trend"  # the form of a profile's measures that enters the scores; `hiar score` reports the others


def check_sizes(profiles: Sequence[Profile], height: int, width: int) -> None:
    """Raise UserError for a profile that needs larger videos than ``height`` x ``width`` pixels."""
    for profile in profiles:
        if min(height, width) < profile.least_side:
            raise UserError(
                f"score.profiles: {profile.name} needs {profile.least_side} pixels a side, the world has "
                f"{width}x{height}; leave it out"
            )


def drift_of_samples(folder: Path, paths: Sequence[Path], profiles: Sequence[Profile], values: Path | None) -> Figures:
    """The profiles' figures for the videos of a folder; results of the same videos in ``values`` are reused.

    For each profile: its score, its floor, and the trends of its measures. Facts: the profiles' records by name.
    Raises UserError for a video that cannot be scored, after all others are scored.
    """
    videos = [Video(path, read_head(path), None, file_hash(path)) for path in paths]
    if values:
        with writing(values.parent):
            values.parent.mkdir(parents=True, exist_ok=True)
    found, failed = score_videos(folder, videos, profiles, values)
    if failed:
        raise UserError(next(iter(failed.values())))
    if values:
        keep_only(values, found)
    each: list[dict[str, float]] = [{} for _ in videos]
    for profile in profiles:
        for own, result in zip(each, found[profile.name], strict=True):
            own.update(_shown(profile.name, result["metrics"]))
    names = dict.fromkeys(name for own in each for name in own)
    columns = {name: [own[name] for own in each if name in own] for name in names}
    metrics = {name: summarise(torch.tensor(column, dtype=torch.float64)) for name, column in columns.items()}
    return Figures(metrics, each, {profile.name: dict(profile.record) for profile in profiles})


def _shown(profile: str, metrics: Mapping[str, float | None]) -> dict[str, float]:
    """The metrics that enter the scores, prefixed with the profile's name, so that no judge has the same ones."""
    stem = profile.replace("-", "_")
    scores = {name: metrics[name] for name in (stem, f"{stem}_floor")}
    trends = {f"{stem}_{name}": value for name, value in metrics.items() if name.endswith(SHOWN)}
    return {name: value for name, value in (scores | trends).items() if value is not None}
