"""The comparison as tables: mean, standard error, and which figures cannot be told from the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hiar.metrics.summary import Summary
from hiar.report.columns import Metric
from hiar.report.series import Series

TOLERANCE = 2.0  # standard errors of the difference within which a figure is as good as the best
SHOWS = 0.5  # share of frames in which a student must show something for its figures to count


@dataclass(frozen=True)
class Head:
    name: str
    definition: str
    better: str | None = None


@dataclass(frozen=True)
class Cell:
    """A figure and its error; ``shaded`` where it stands out, as the table's text says."""

    mean: str
    error: str
    shaded: bool = False


@dataclass(frozen=True)
class Row:
    series: Series
    cells: Sequence[Cell]
    n: int
    reference: bool = False


@dataclass(frozen=True)
class Table:
    caption: str
    heads: Sequence[Head]
    rows: list[Row] = field(default_factory=list)


Figures = Mapping[str, Summary]


def comparison(
    caption: str, metrics: Sequence[Metric], students: Mapping[Series, Figures], references: Mapping[Series, Figures]
) -> Table:
    """A row a model and a column a metric; of the students' figures, those that are as good as the best are marked.

    ``references`` - the teacher on its short clips, the true world - are no competitors and come last.
    """
    table = Table(caption, [Head(metric.name, metric.definition, metric.better) for metric in metrics])
    marked = {metric.key: _as_good_as_best(metric, students) for metric in metrics}
    for series, figures in [*students.items(), *references.items()]:
        cells = [_cell(figures.get(metric.key), series in marked[metric.key]) for metric in metrics]
        table.rows.append(Row(series, cells, figures[metrics[0].key]["n"], reference=series in references))
    return table


def _as_good_as_best(metric: Metric, students: Mapping[Series, Figures]) -> set[Series]:
    """The students within TOLERANCE standard errors of the best of those that show something; none when that is all.

    Nor any where there are no errors, as there are of VBench's Semantic.
    """
    able = {series: figures for series, figures in students.items() if _shows(figures)}
    if metric.better is None or not able or any(one[metric.key]["se"] is None for one in able.values()):
        return set()
    sign = 1 if metric.better == "higher" else -1
    best = max((figures[metric.key] for figures in able.values()), key=lambda summary: sign * summary["mean"])
    chosen = {series for series, figures in able.items() if _close(figures[metric.key], best)}
    return chosen if len(chosen) < len(students) else set()


def _shows(figures: Figures) -> bool:
    """Whether the oracle sees anything in most frames; a video of nothing has no drift, no hops and no borders."""
    return "visible" not in figures or figures["visible"]["mean"] >= SHOWS


def _close(one: Summary, other: Summary) -> bool:
    error = math.hypot(one["se"] or 0.0, other["se"] or 0.0)
    return abs(one["mean"] - other["mean"]) <= TOLERANCE * error


def _cell(summary: Summary | None, best: bool) -> Cell:
    if summary is None:  # of a reference that this was not measured of
        return Cell("", "", best)
    places, se = decimals(summary["mean"]), summary["se"]
    return Cell(f"{summary['mean']:.{places}f}", "" if se is None else f"{se:.{places}f}", best)


def decimals(value: float) -> int:
    """How many decimals a figure of this size is shown with."""
    return 3 if abs(value) < 10 else 1
