"""The metrics in the report's tables, and what each means."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from hiar.vbench.dimensions import DIMENSIONS, QUALITY, SEMANTIC


@dataclass(frozen=True)
class Metric:
    """A column of a table. ``better``: which direction is good, None if neither."""

    key: str
    name: str
    definition: str
    better: Literal["higher", "lower"] | None = None


METRICS = (
    Metric(
        "good",
        "Good frames",
        "Share of frames that show what the caption asks for: residual and colour error under their thresholds, and "
        "the right shape.",
        "higher",
    ),
    Metric(
        "visible",
        "Visible",
        "Share of frames in which a shape stands out from the background. If it is less than half, none of the "
        "student's figures are shaded: a black video neither drifts nor hops.",
        "higher",
    ),
    Metric("shape_right", "Right shape", "Share of frames whose best-fitting shape is the captioned one.", "higher"),
    Metric(
        "residual",
        "Residual",
        "Root mean square distance of a frame from the nearest one that the world can render, pixels in [0, 1].",
        "lower",
    ),
    Metric("color_error", "Colour error", "Distance in RGB between the fitted and the captioned colour.", "lower"),
    Metric(
        "saturation_drift",
        "Saturation drift",
        "Absolute slope of a line through the mean HSV saturation of the video's parts, as the change over the whole "
        "video. It has the form of the paper's Drift but is one plain measure, not that score.",
        "lower",
    ),
    Metric(
        "saturation_trend",
        "Saturation trend",
        "The same slope with its sign. Noise alone makes the mean of absolute slopes positive, but not this mean.",
    ),
    Metric(
        "sharpness_drift",
        "Sharpness drift",
        "Absolute slope for the variance of the Laplacian of luma, in squared grey levels.",
        "lower",
    ),
    Metric("sharpness_trend", "Sharpness trend", "The same slope with its sign."),
    Metric(
        "background_shift",
        "Background shift",
        "Distance in RGB between the fitted backgrounds of the video's first and last part.",
        "lower",
    ),
    Metric(
        "border_jump",
        "Border jump",
        "Change between frames across block borders over that inside blocks; 1 means that borders do not show.",
        "lower",
    ),
    Metric(
        "hops",
        "Hops",
        "Steps of the object between consecutive frames that are longer than the threshold, per 100 steps.",
        "lower",
    ),
    Metric(
        "smoothed_speed",
        "Speed",
        "Displacement of the object over three frames divided by three, pixels per frame, after a running median of "
        "three frames. Compare it with the true world's: motion that dies out is the classic failure.",
    ),
    Metric("dynamic", "Moving", "Share of videos whose speed is at least half the world's slowest."),
)


def _drift(key: str, name: str, measures: str) -> tuple[Metric, Metric]:
    floor = "Mean of the same score over all orders of the segments: the part of it that is noise."
    return Metric(key, name, measures, "lower"), Metric(f"{key}_floor", f"{name}, floor", floor)


DRIFT = {
    "drift": _drift(
        "drift",
        "Drift",
        "The paper's Drift: mean over MUSIQ, CLIP-IQA, DINOv2, LPIPS, saturation and sharpness of the absolute slope "
        "over the video's five segments, as a share of the measure's mean. The paper leaves normalisation and weights "
        "open.",
    ),
    "drift-lite": _drift(
        "drift_lite",
        "Drift-lite",
        "The form of the paper's Drift with saturation, sharpness, colourfulness, SSIM, and error and length of the "
        "optical flow, which need no networks: not the paper's Drift.",
    ),
}
VBENCH_WHOLES = (  # each with the groups whose dimensions it needs, all of them
    (
        Metric(
            "vbench_quality", "VBench Quality", "VBench's weighted mean of its seven dimensions of quality.", "higher"
        ),
        (QUALITY,),
    ),
    (
        Metric(
            "vbench_semantic",
            "VBench Semantic",
            "VBench's mean of its nine semantic dimensions, each measured on some of the prompts: not defined for a "
            "single video.",
            "higher",
        ),
        (SEMANTIC,),
    ),
    (
        Metric("vbench_total", "VBench Total", "Weighted mean of Quality (4) and Semantic (1).", "higher"),
        (QUALITY, SEMANTIC),
    ),
)


# Models are ranked by the first of these that they were scored by. Each world has some of them.
LEADING = ("good", "vbench_total", "drift", "drift_lite", "saturation_drift")
LOWER = {one.key for one in METRICS if one.better == "lower"} | {score.key for score, _ in DRIFT.values()}


def leading(metrics: Collection[str]) -> str | None:
    """The one of these metrics by which models are ranked; None if there is none."""
    return next((key for key in LEADING if key in metrics), None)


def rank(key: str, value: float) -> float:
    """``value`` of a metric, negated if lower is better, so that higher is better; unknown metrics are not negated."""
    return -value if key in LOWER else value


def drift_columns(profiles: Sequence[str]) -> list[Metric]:
    """Columns of drift profiles: the scores, and the score that noise alone gives."""
    return [column for profile in profiles for column in DRIFT[profile]]


def vbench_columns(dimensions: Sequence[str]) -> list[Metric]:
    """Columns of VBench's dimensions, and of Quality, Semantic and Total where all their dimensions are given."""
    columns = [
        Metric(f"vbench_{name}", f"VBench {name.replace('_', ' ')}", f"VBench's {name}, raw.", "higher")
        for name in dimensions
    ]
    lacking = {one.group for name, one in DIMENSIONS.items() if name not in dimensions}
    return [*columns, *(one for one, groups in VBENCH_WHOLES if lacking.isdisjoint(groups))]


def good_by_part(parts: int) -> list[Metric]:
    """Columns of the share of good frames in each part of the videos."""
    return [
        Metric(f"good_segment_{part}", f"Part {part}", f"Share of good frames in part {part} of {parts}.", "higher")
        for part in range(1, parts + 1)
    ]
