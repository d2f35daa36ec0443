"""Tables of paired differences to one contender: over videos, and over training seeds where there are several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hiar.report.columns import Metric
from hiar.report.series import Series
from hiar.report.tables import Cell, Head, Row, Table, decimals
from hiar.statistics.intervals import Interval
from hiar.statistics.paired import Estimate, Scores, differences, estimate

PAIRED = (
    "Differences are taken video by video, between models that share prompt and noise, with 95 % intervals (Student's "
    "t); those that exclude 0 are shaded. Intervals over videos say how far the result would move with other videos of "
    "the same models, those over training seeds how far with another training seed."
)


def difference_tables(
    metrics: Sequence[Metric], scores: Scores, students: Mapping[str, Series], reference: str
) -> list[Table]:
    """One row per contender except the reference, one column per metric: the contender's value minus the reference's.

    students: series by contender, as named in scores. Raises UserError if videos cannot be paired.
    """
    found = {
        series: [estimate(differences(scores, name, reference, metric.key)) for metric in metrics]
        for name, series in students.items()
        if name != reference
    }
    heads = [Head(metric.name, metric.definition, metric.better) for metric in metrics]
    other = students[reference].name
    tables = [Table(f"Difference to {other}, 95 % interval over videos", heads)]
    for series, row in found.items():
        tables[0].rows.append(_row(series, row, [one.videos for one in row]))
    if any(one.training for row in found.values() for one in row):
        tables.append(Table(f"Difference to {other}, 95 % interval over training seeds", heads))
        for series, row in found.items():
            tables[1].rows.append(_row(series, row, [one.training for one in row]))
    return tables


def _row(series: Series, estimates: Sequence[Estimate], intervals: Sequence[Interval | None]) -> Row:
    cells = [_cell(one.mean, interval) for one, interval in zip(estimates, intervals, strict=True)]
    return Row(series, cells, n=next((one.n for one in intervals if one), 1))


def _cell(mean: float, interval: Interval | None) -> Cell:
    places = decimals(mean)
    half = "" if interval is None else f"{interval.half:.{places}f}"
    return Cell(f"{mean:+.{places}f}", half, shaded=interval is not None and interval.sign != 0)
