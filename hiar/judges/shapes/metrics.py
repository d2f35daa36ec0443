"""All metrics of the built-in world's videos, one value per video."""

from __future__ import annotations

from torch import Tensor

from hiar.config import Score, ShapesWorld
from hiar.judges.shapes.oracle import Judgement
from hiar.metrics import drift, motion
from hiar.metrics.looks import Looks, in_parts, looks_metrics
from hiar.metrics.segments import segment_means


def measured(
    looks: Looks, judgement: Judgement, world: ShapesWorld, score: Score, blocks: tuple[int, int]
) -> dict[str, Tensor]:
    """Metrics by name, each (V,), from how videos look and what the oracle finds in them.

    - ``good``: share of frames that show the captioned thing: residual and colour error under their thresholds and the
      right shape. ``residual``, ``color_error``, ``shape_right``: its parts, as means over frames; ``background_error``
      does not count in it.
    - ``visible``: share of frames in which a shape stands out. What stays black neither drifts nor hops: without this
      the other figures say nothing.
    - ``smoothed_speed`` (pixels per frame), ``hops`` (in 100 steps), ``dynamic`` (share of videos that move).
    - ``background_shift``: distance in RGB, [0, 1] units, between the fitted backgrounds of first and last segment.
    - ``NAME_segment_1`` ... for ``good`` and ``background_shift``: the same in each segment of the video; the shift is
      the distance from the first segment, hence 0 there.
    - All of `hiar.metrics.looks.looks_metrics`.

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
        "background_shift": background_shift[:, -1],
    }
    in_time = in_parts(good=segment_means(good, score.segments), background_shift=background_shift)
    return metrics | in_time | looks_metrics(looks, score.segments, blocks)
