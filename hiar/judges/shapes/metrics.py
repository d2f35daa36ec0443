"""Everything that is measured of videos of the built-in world, one value a video."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hiar.config import Score, ShapesWorld
from hiar.judges.shapes.oracle import Judgement
from hiar.metrics import continuity, drift, motion
from hiar.metrics.segments import segment_means, trend


@dataclass(frozen=True)
class Looks:
    """What is measured of V videos of F frames without the oracle."""

    saturation: Tensor  # (V, F) HSV, [0, 1]
    sharpness: Tensor  # (V, F) squared grey levels
    change: Tensor  # (V, F - 1) from frame to frame, grey levels; (V, F) in a part that follows another


def look(frames: Tensor, before: Tensor | None = None) -> Looks:
    """Looks of videos, or of parts of them, uint8 (V, f, H, W, 3); ``before``: the frames (V, 1, H, W, 3) before."""
    joined = frames if before is None else torch.cat([before, frames], dim=1)
    return Looks(drift.saturation(frames), drift.sharpness(frames), continuity.changes(joined))


def measured(
    looks: Looks, judgement: Judgement, world: ShapesWorld, score: Score, blocks: tuple[int, int]
) -> dict[str, Tensor]:
    """Metrics by name, each (V,), of how videos look and what the oracle says of them.

    - ``good``: share of frames that show the captioned thing: residual and colour error under their thresholds and the
      right shape. ``residual``, ``color_error``, ``shape_right``: its parts, as means over frames; ``background_error``
      does not count in it.
    - ``visible``: share of frames in which a shape stands out. What stays black neither drifts nor hops: without this
      the other figures say nothing.
    - ``smoothed_speed`` (pixels a frame), ``hops`` (in 100 steps), ``dynamic`` (share of videos that move).
    - ``saturation_drift`` (HSV saturation a video), ``sharpness_drift`` (squared grey levels a video): absolute trends;
      ``saturation_trend``, ``sharpness_trend``: the same with their sign.
    - ``background_shift``: distance in RGB, [0, 1] units, between the fitted backgrounds of first and last segment.
    - ``border_jump``: frame change across borders of blocks over that inside them; ``blocks``: frames of
      the first block, and of every other one.
    - ``NAME_segment_1`` ... for ``good``, ``saturation``, ``saturation_shift`` and ``background_shift``: the same in
      each part of the video; the shifts are distances from the first part, hence 0 there.

    Raises ValueError when the videos have fewer frames than ``score.segments``.
    """
    good = (
        judgement.shape_right & (judgement.residual < score.good_residual) & (judgement.color_error < score.good_color)
    ).double()
    speed = motion.smoothed_speed(judgement.position)
    background_shift = drift.shift(judgement.background, score.segments)
    metrics = {
        "good": good.mean(dim=1),
        "visible": judgement.visible.double().mean(dim=1),
        "residual": judgement.residual.double().mean(dim=1),
        "shape_right": judgement.shape_right.double().mean(dim=1),
        "color_error": judgement.color_error.double().mean(dim=1),
        "background_error": judgement.background_error.double().mean(dim=1),
        "smoothed_speed": speed,
        "hops": motion.hops(judgement.position, score.hop),
        "dynamic": motion.dynamic(speed, world.speed[0]),
        "saturation_drift": drift.drift(looks.saturation, score.segments),
        "saturation_trend": trend(looks.saturation, score.segments),
        "sharpness_drift": drift.drift(looks.sharpness, score.segments),
        "sharpness_trend": trend(looks.sharpness, score.segments),
        "background_shift": background_shift[:, -1],
        "border_jump": continuity.border_jump(looks.change, blocks[1], blocks[0]),
    }
    curves = {
        "good": segment_means(good, score.segments),
        "saturation": segment_means(looks.saturation, score.segments),
        "saturation_shift": drift.shift(looks.saturation, score.segments),
        "background_shift": background_shift,
    }
    for name, curve in curves.items():
        metrics |= {f"{name}_segment_{index}": values for index, values in enumerate(curve.unbind(dim=1), start=1)}
    return metrics
