"""Metrics over the length of the videos: one chart per metric, one line per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hiar.metrics.summary import Summary
from hiar.report.charts import Line, Point, line_chart
from hiar.report.page import Figure
from hiar.report.series import Series


@dataclass(frozen=True)
class Course:
    """A metric that summary.json holds part by part, as KEY_segment_1, KEY_segment_2, ..."""

    key: str
    title: str
    note: str
    y_range: tuple[float, float] | None = None


COURSES = (
    Course("good", "Good frames", "share of frames that show what was asked; higher is better", (0.0, 1.0)),
    Course(
        "saturation_shift",
        "Saturation shift",
        "distance of the mean HSV saturation from the first part's; lower is better",
    ),
    Course("background_shift", "Background shift", "distance in RGB from the first part's background; lower is better"),
)


def along_the_video(
    figures: Mapping[Series, Mapping[str, Summary]],
    seconds: Mapping[Series, float],
    segments: int,
    courses: Sequence[str],
) -> list[Figure]:
    """Charts of these metrics over time, one line per series; ``seconds``: the length of each series' videos."""
    charts = []
    for course in (course for course in COURSES if course.key in courses):
        lines = [_line(series, metrics, course, seconds[series], segments) for series, metrics in figures.items()]
        charts.append(
            Figure(course.title, course.note, line_chart(course.title, "seconds", lines, y_range=course.y_range))
        )
    return charts


def _line(series: Series, metrics: Mapping[str, Summary], course: Course, seconds: float, segments: int) -> Line:
    points = []
    for part in range(segments):
        summary = metrics[f"{course.key}_segment_{part + 1}"]
        error = summary["se"] or 0.0
        note = f"{series.name}, part {part + 1} of {segments}: {summary['mean']:.3f} ± {error:.3f}"
        points.append(Point((part + 0.5) / segments * seconds, summary["mean"], error, note))
    return Line(series.name, series.color, points, series.dashed)
