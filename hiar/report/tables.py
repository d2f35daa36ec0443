"""The comparison as tables: mean, standard error, and which figures are not distinguishable from the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hiar.metrics.summary import Summary
from hiar.report.columns import Metric
from hiar.report.series import Series

TOLERANCE = 2.0  # standard errors of the difference within which a figure is as good as the best
SHOWS = 0.5  # least share of frames with a visible shape for a student's figures to count


@dataclass(frozen=True)
class Head:
    name: str
    definition: str
    better: str | None = None


@dataclass(frozen=True)
class Cell:
    """A figure and its error; what ``shaded`` means is said in the table's text."""

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
    """One row per model, one column per metric; students' figures that are as good as the best are shaded.

    ``references`` - the teacher on its short clips, the true world - do not compete and come last.
    """
    table = Table(caption, [Head(metric.name, metric.definition, metric.better) for metric in metrics])
    marked = {metric.key: _as_good_as_best(metric, students) for metric in metrics}
    for series, figures in [*students.items(), *references.items()]:
        cells = [_cell(figures.get(metric.key), series in marked[metric.key]) for metric in metrics]
        table.rows.append(Row(series, cells, figures[metrics[0].key]["n"], reference=series in references))
    return table


def _as_good_as_best(metric: Metric, students: Mapping[Series, Figures]) -> set[Series]:
    """The students within TOLERANCE standard errors of the best of those that show something; none if all are.

    None either if a standard error is missing, as for VBench's Semantic.
    """
    able = {series: figures for series, figures in students.items() if _shows(figures)}
    if metric.better is None or not able or any(one[metric.key]["se"] is None for one in able.values()):
        return set()
    sign = 1 if metric.better == "higher" else -1
    best = max((figures[metric.key] for figures in able.values()), key=lambda summary: sign * summary["mean"])
    chosen = {series for series, figures in able.items() if _close(figures[metric.key], best)}
    return chosen if len(chosen) < len(students) else set()


def _shows(figures: Figures) -> bool:
    """Whether the oracle sees a shape in most frames; an empty video would have no drift, no hops and no borders."""
    return "visible" not in figures or figures["visible"]["mean"] >= SHOWS


def _close(one: Summary, other: Summary) -> bool:
    error = math.hypot(one["se"] or 0.0, other["se"] or 0.0)
    return abs(one["mean"] - other["mean"]) <= TOLERANCE * error


def _cell(summary: Summary | None, best: bool) -> Cell:
    if summary is None:  # a reference for which this metric was not measured
        return Cell("", "", best)
    places, se = decimals(summary["mean"]), summary["se"]
    return Cell(f"{summary['mean']:.{places}f}", "" if se is None else f"{se:.{places}f}", best)


def decimals(value: float) -> int:
    """The number of decimals shown for a figure of this size."""
    return 3 if abs(value) < 10 else 1
