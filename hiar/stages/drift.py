"""Drift of an experiment's samples, for its scores: the same profiles and records as `hiar score --profile`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from hiar.errors import UserError
from hiar.io.files import file_hash, writing
from hiar.io.reading import read_head
from hiar.metrics.summary import Figures, summarise
from hiar.profiles.profile import Profile
from hiar.stages.profile_values import Video, keep_only, score_videos

RECORDS = Path(".hiar", "profiles")  # in a workspace: what is kept by video, so that nothing is done twice
SHOWN = "_trend"  # the form of a profile's measures that goes into the scores; `hiar score` tells the others


def check_sizes(profiles: Sequence[Profile], height: int, width: int) -> None:
    """Raise UserError for a profile that videos of these pixels are too small for."""
    for profile in profiles:
        if min(height, width) < profile.least_side:
            raise UserError(
                f"score.profiles: {profile.name} needs {profile.least_side} pixels a side, the world has "
                f"{width}x{height}; leave it out"
            )


def drift_of_samples(folder: Path, paths: Sequence[Path], profiles: Sequence[Profile], values: Path | None) -> Figures:
    """What profiles say of the videos of a folder; what ``values`` holds of the same videos is not done again.

    Of each profile its score and floor, and of its measures the trend. Facts: the profiles' records by name.
    Raises UserError for a video that cannot be scored, when all others are.
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
            named = {metric_name(profile.name, name): value for name, value in result["metrics"].items()}
            own.update({name: value for name, value in named.items() if name is not None and value is not None})
    metrics = {}
    for name in dict.fromkeys(name for own in each for name in own):
        known = torch.tensor([own[name] for own in each if name in own], dtype=torch.float64)
        metrics[name] = summarise(known)
    return Figures(metrics, each, {profile.name: dict(profile.record) for profile in profiles})


def metric_name(profile: str, metric: str) -> str | None:
    """What a profile's metric is called among the scores, where its judge's have the same names; None: it is no score.

    The score and its floor begin with the profile's name already.
    """
    stem = profile.replace("-", "_")
    if metric in (stem, f"{stem}_floor"):
        return metric
    return f"{stem}_{metric}" if metric.endswith(SHOWN) else None
