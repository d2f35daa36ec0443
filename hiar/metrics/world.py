"""Everything that is measured of videos of the built-in world, one value a video."""

from __future__ import annotations

from torch import Tensor

from hiar.config import Score, World
from hiar.metrics import continuity, drift, motion
from hiar.metrics.segments import segment_means, trend
from hiar.world.oracle import Judgement


def measure(frames: Tensor, judgement: Judgement, world: World, score: Score, block: int) -> dict[str, Tensor]:
    """Metrics by name, each (V,), of videos uint8 (V, F, H, W, 3) and what the oracle says of them.

    - ``good``: share of frames that show the captioned thing: residual and colour error under their thresholds and the
      right shape. ``residual``, ``color_error``, ``shape_right``: its parts, as means over frames; ``background_error``
      does not count in it.
    - ``smoothed_speed`` (pixels a frame), ``hops`` (in 100 steps), ``dynamic`` (share of videos that move).
    - ``saturation_drift`` (HSV saturation a video), ``sharpness_drift`` (squared grey levels a video): absolute trends;
      ``saturation_trend``, ``sharpness_trend``: the same with their sign.
    - ``background_shift``: distance in RGB, [0, 1] units, between the fitted backgrounds of first and last segment.
    - ``border_jump``: frame change across borders of ``block`` frames over that inside blocks.
    - ``NAME_segment_1`` ... for ``good``, ``saturation``, ``saturation_shift`` and ``background_shift``: the same in
      each part of the video; the shifts are distances from the first part, hence 0 there.

    Raises ValueError when the videos have fewer frames than ``score.segments``.
    """
    good = (
        judgement.shape_right & (judgement.residual < score.good_residual) & (judgement.color_error < score.good_color)
    ).double()
    saturation, sharpness = drift.saturation(frames), drift.sharpness(frames)
    speed = motion.smoothed_speed(judgement.position)
    background_shift = drift.shift(judgement.background, score.segments)
    metrics = {
        "good": good.mean(dim=1),
        "residual": judgement.residual.double().mean(dim=1),
        "shape_right": judgement.shape_right.double().mean(dim=1),
        "color_error": judgement.color_error.double().mean(dim=1),
        "background_error": judgement.background_error.double().mean(dim=1),
        "smoothed_speed": speed,
        "hops": motion.hops(judgement.position, score.hop),
        "dynamic": motion.dynamic(speed, world.speed[0]),
        "saturation_drift": drift.drift(saturation, score.segments),
        "saturation_trend": trend(saturation, score.segments),
        "sharpness_drift": drift.drift(sharpness, score.segments),
        "sharpness_trend": trend(sharpness, score.segments),
        "background_shift": background_shift[:, -1],
        "border_jump": continuity.border_jump(frames, block),
    }
    curves = {
        "good": segment_means(good, score.segments),
        "saturation": segment_means(saturation, score.segments),
        "saturation_shift": drift.shift(saturation, score.segments),
        "background_shift": background_shift,
    }
    for name, curve in curves.items():
        metrics |= {f"{name}_segment_{index}": values for index, values in enumerate(curve.unbind(dim=1), start=1)}
    return metrics
