"""The value of a dimension from the records of its videos, averaged as by VBench."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]  # the official fields of a video's or a clip's result; `video_results` is its value

_SUMMED = {"aesthetic_quality", "imaging_quality", "human_action", "color"}
UNIT = {"imaging_quality": 100}  # a video's result is divided by this in the value
# Means over frames: the field that is summed, and the field that counts.
_RATIOS = {
    "background_consistency": ("video_sim", "cnt_per_video"),
    "object_class": ("success_frame_count", "frame_count"),
    "multiple_objects": ("success_frame_count", "frame_count"),
    "scene": ("success_frame_count", "frame_count"),
}


def dimension_value(dimension: str, records: Sequence[Record]) -> float:
    """The value from records of whole videos, one at least, in VBench's order and with its rounding.

    Some are means over videos, some over all frames. VBench does not report the sums of subject_consistency, so there
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

    So VBench-Long intends it, with the mean over videos as the value; but its code tells videos apart by their names
    up to the first underscore, and so mixes them.
    """
    videos = {name: mean([one["video_results"] for one in records]) for name, records in clips.items() if records}
    value = mean(list(videos.values()))
    return value / UNIT.get(dimension, 1), videos


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return _total(values) / len(values)


def _total(values: Iterable[float]) -> float:
    """The sum, one value after the other, as VBench adds: `sum` keeps more digits on newer Pythons."""
    total = 0.0
    for value in values:
        total += value
    return total
