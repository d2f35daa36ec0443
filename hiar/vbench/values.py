"""The value of a dimension from the records of its videos, as VBench takes the mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]  # the official fields of a video's or a clip's result; `video_results` is its value

_SUMMED = {"aesthetic_quality", "imaging_quality", "human_action", "color"}
UNIT = {"imaging_quality": 100}  # how many times as large a video's result is as it counts in the value
# Means over frames: what is summed, and what counts.
_RATIOS = {
    "background_consistency": ("video_sim", "cnt_per_video"),
    "object_class": ("success_frame_count", "frame_count"),
    "multiple_objects": ("success_frame_count", "frame_count"),
    "scene": ("success_frame_count", "frame_count"),
}


def dimension_value(dimension: str, records: Sequence[Record]) -> float:
    """The value of whole videos' records, one at least, in VBench's order and with its rounding.

    Some are means over videos, some over all frames. Of subject_consistency VBench does not tell what it sums: there
    the last digit may differ.
    """
    if dimension in _RATIOS:
        counted, count = _RATIOS[dimension]
        return _total(one[counted] for one in records) / _total(one[count] for one in records)
    if dimension == "subject_consistency":
        pairs = _total(one["pairs"] for one in records)
        return _total(one["video_results"] * one["pairs"] for one in records) / pairs
    if dimension == "appearance_style":
        frames = [value for one in records for value in one["frame_results"]]
        return _total(frames) / len(frames)
    if dimension == "spatial_relationship":
        return float(np.mean([value for one in records for value in one["frame_results"]]))
    values = [one["video_results"] for one in records]
    mean = _total(values) / len(values) if dimension in _SUMMED else float(np.mean(values))
    return mean / UNIT.get(dimension, 1)


def long_values(dimension: str, clips: Mapping[str, Sequence[Record]]) -> tuple[float, dict[str, float]]:
    """The value of long videos, and each video's own: the mean of its clips. clips: records by video, one at least.

    VBench-Long means so, and takes the mean over videos; its own code, which tells videos apart by what their names
    hold before the first underscore, mixes them.
    """
    videos = {name: mean([one["video_results"] for one in records]) for name, records in clips.items() if records}
    value = mean(list(videos.values()))
    return value / UNIT.get(dimension, 1), videos


def mean(values: Sequence[float]) -> float:
    """Of one value at least."""
    return _total(values) / len(values)


def _total(values: Iterable[float]) -> float:
    """One after the other, as VBench adds: `sum` keeps more digits on newer Pythons."""
    total = 0.0
    for value in values:
        total += value
    return total
