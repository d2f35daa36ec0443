"""Metrics from the pixels of any video alone, without weights and without knowing what it should show."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hiar.metrics import continuity, drift
from hiar.metrics.segments import segment_means, trend


@dataclass(frozen=True)
class Looks:
    """Measures of V videos of F frames."""

    saturation: Tensor  # (V, F) HSV, [0, 1]
    sharpness: Tensor  # (V, F) squared grey levels
    change: Tensor  # (V, F - 1) from frame to frame, grey levels; (V, F) in a part that follows another


def look(frames: Tensor, before: Tensor | None = None) -> Looks:
    """Looks of videos, or of parts of them, uint8 (V, f, H, W, 3); ``before``: the preceding frames (V, 1, H, W, 3)."""
    joined = frames if before is None else torch.cat([before, frames], dim=1)
    return Looks(drift.saturation(frames), drift.sharpness(frames), continuity.changes(joined))


def looks_metrics(looks: Looks, segments: int, blocks: tuple[int, int]) -> dict[str, Tensor]:
    """Metrics by name, each (V,).

    - ``saturation_drift`` (HSV saturation per video), ``sharpness_drift`` (squared grey levels per video): absolute
      trends; ``saturation_trend``, ``sharpness_trend``: the same with their sign.
    - ``border_jump``: ratio of the frame change across block borders to that inside blocks; ``blocks``: frames of the
      first block, and of every other one.
    - ``NAME_segment_1`` ... for ``saturation`` and ``saturation_shift``: the same in each segment of the video; shifts
      are distances from the first segment, hence 0 there.

    Raises ValueError when the videos have fewer frames than ``segments``.
    """
    metrics = {
        "saturation_drift": drift.drift(looks.saturation, segments),
        "saturation_trend": trend(looks.saturation, segments),
        "sharpness_drift": drift.drift(looks.sharpness, segments),
        "sharpness_trend": trend(looks.sharpness, segments),
        "border_jump": continuity.border_jump(looks.change, blocks[1], blocks[0]),
    }
    saturation = segment_means(looks.saturation, segments)
    return metrics | in_parts(saturation=saturation, saturation_shift=drift.shift(looks.saturation, segments))


def in_parts(**curves: Tensor) -> dict[str, Tensor]:
    """Curves (V, segments) as one metric (V,) per segment: NAME_segment_1 and so on."""
    return {
        f"{name}_segment_{part}": values
        for name, curve in curves.items()
        for part, values in enumerate(curve.unbind(dim=1), start=1)
    }
