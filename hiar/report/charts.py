"""Line charts as inline SVG: no scripts, no fonts, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 400, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 30
LOG_RATIO = 30  # positive curves that span more than this factor are drawn on a logarithmic scale
TINY = 1e-300  # ranges up to this are too small to be divided by ticks
POINTS = 150  # to which a line is thinned by averaging neighbours


@dataclass(frozen=True)
class Point:
    """``error`` is half the height of the band around ``y``."""

    x: float
    y: float
    error: float = 0.0
    note: str = ""  # shown on hovering


@dataclass(frozen=True)
class Line:
    """``color`` is a class of the style sheet; ``dashed`` distinguishes two lines of the same colour."""

    label: str
    color: str
    points: Sequence[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """Maps values to a span of the drawing, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The coordinate of ``value`` in the drawing, clamped to the ends of the range."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, max(value, self.low)))
        return self.start + (self.end - self.start) * (min(value, high) - low) / (high - low)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            marks = [10.0**power for power in powers]
            return marks if len(marks) > 1 else [self.low, self.high]
        step = _round_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(title: str, x_label: str, lines: Sequence[Line], *, y_range: tuple[float, float] | None = None) -> str:
    """An SVG element with a polyline and an error band for each line.

    Without ``y_range`` the vertical axis covers 0 and all bands, or is logarithmic when all values are positive and
    far apart. Raises ValueError when there is no point to draw.
    """
    lines = [Line(line.label, line.color, thin(line.points), line.dashed) for line in lines if line.points]
    if not lines:
        raise ValueError(f"{title}: nothing to draw")
    xs = [point.x for line in lines for point in line.points]
    x_axis = Axis(*_range(min(0.0, *xs), max(xs)), LEFT, WIDTH - RIGHT)
    y_axis = _y_axis(lines, y_range)
    body = [_grid(x_axis, y_axis), *(_band(line, x_axis, y_axis) for line in lines)]
    body += [_polyline(line, x_axis, y_axis) for line in lines]
    name = escape(f"{title}: {', '.join(line.label for line in lines)}")
    middle = (x_axis.start + x_axis.end) / 2
    body.append(f'<text class="axis" x="{middle:.1f}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(body)}</svg>'


def thin(points: Sequence[Point], count: int = POINTS) -> list[Point]:
    """At most ``count`` points, each the mean of as many neighbours as needed; short lines stay as they are."""
    size = math.ceil(len(points) / count)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        Point(*(sum(getattr(point, field) for point in group) / len(group) for field in ("x", "y", "error")))
        for group in groups
    ]


def tick_label(value: float) -> str:
    """A short decimal: 0, 0.25, 12, 3k."""
    if abs(value) >= 999.5:  # three digits of more would be 1e+03
        return f"{round(value) / 1000:g}k"
    return f"{value:.3g}"


def _y_axis(lines: Sequence[Line], y_range: tuple[float, float] | None) -> Axis:
    bottom, top = HEIGHT - BOTTOM, TOP
    if y_range is not None:
        return Axis(*y_range, bottom, top)
    lows = [point.y - point.error for line in lines for point in line.points]
    highs = [point.y + point.error for line in lines for point in line.points]
    low, high = min(lows), max(highs)
    if low > 0 and high / low > LOG_RATIO:
        return Axis(low, high, bottom, top, log=True)
    low, high = _range(min(low, 0.0), max(high, 0.0))
    step = _round_step((high - low) / 4)
    return Axis(step * math.floor(low / step), step * math.ceil(high / step), bottom, top)


def _range(low: float, high: float) -> tuple[float, float]:
    """The range of an axis; a length of 1 where the values are too close to be told apart."""
    return (low, high) if high - low > TINY else (low, low + 1.0)


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    marks = []
    for value in y_axis.ticks():
        y = y_axis.at(value)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(
            f'<text class="axis" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick_label(value)}</text>'
        )
    base = HEIGHT - BOTTOM
    for value in x_axis.ticks():
        x = x_axis.at(value)
        marks.append(f'<text class="axis" x="{x:.1f}" y="{base + 14}" text-anchor="middle">{tick_label(value)}</text>')
    return "".join(marks)


def _band(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    if not any(point.error for point in line.points):
        return ""
    upper = [f"{x_axis.at(p.x):.1f},{y_axis.at(p.y + p.error):.1f}" for p in line.points]
    lower = [f"{x_axis.at(p.x):.1f},{y_axis.at(p.y - p.error):.1f}" for p in reversed(line.points)]
    return f'<polygon class="band {line.color}" points="{" ".join(upper + lower)}"/>'


def _polyline(line: Line, x_axis: Axis, y_axis: Axis) -> str:
    places = [(x_axis.at(point.x), y_axis.at(point.y), point.note) for point in line.points]
    dashed = " dashed" if line.dashed else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    dots = "".join(
        f'<circle class="dot {line.color}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(note)}</title></circle>'
        for x, y, note in places
        if note
    )
    return f'<polyline class="line {line.color}{dashed}" points="{path}"/>{dots}'


def _round_step(rough: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is no larger than about ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= rough * (1 + 1e-9))
