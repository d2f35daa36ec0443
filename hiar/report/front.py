"""Charts of metrics over the context level c, t_c = c t_{j+1}: lines of students trained at c, of one walked at c."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hiar.report.charts import Line, Point, line_chart
from hiar.report.columns import Metric
from hiar.report.page import Figure
from hiar.report.series import COLORS, Series
from hiar.statistics.paired import Scores, estimate, values_of

SHOWN = ("saturation_drift", "good", "smoothed_speed")
MARGIN = 0.1  # above and below, as a share of the range of values

Levels = Mapping[str, Mapping[float, str]]  # by the line's name: contenders by level


def front_legend(levels: Levels) -> dict[str, Series]:
    """The lines' names and colours."""
    return {name: Series(name, "", f"c{place % COLORS}") for place, name in enumerate(levels)}


def front(metrics: Sequence[Metric], scores: Scores, levels: Levels) -> list[Figure]:
    """A chart for each metric of `SHOWN`, with 95 % intervals over videos as bands; nothing without levels."""
    legend, figures = front_legend(levels), []
    for metric in [one for one in metrics if one.key in SHOWN] if levels else []:
        lines = [
            Line(name, legend[name].color, [_point(scores, of[level], metric, level) for level in sorted(of)])
            for name, of in levels.items()
        ]
        ends = [point.y + side * point.error for line in lines for point in line.points for side in (-1, 1)]
        margin = MARGIN * (max(ends) - min(ends)) or 1.0
        span = (min(ends) - margin, max(ends) + margin)
        note = "" if metric.better is None else f"{metric.better} is better"
        figures.append(Figure(metric.name, note, line_chart(metric.name, "c", lines, y_range=span)))
    return figures


def _point(scores: Scores, name: str, metric: Metric, level: float) -> Point:
    found = estimate(values_of(scores, name, metric.key))
    error = found.videos.half if found.videos else 0.0
    seeds = ", ".join(f"{mean:.4f}" for mean in found.seeds.values())
    return Point(level, found.mean, error, f"{name} at {level:g}: {found.mean:.4f} ± {error:.4f}, by seed: {seeds}")
