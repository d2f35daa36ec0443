"""The training curves of curves/ as charts."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hiar.errors import UserError
from hiar.report.charts import Line, Point, line_chart
from hiar.report.page import Figure, Losses
from hiar.report.series import Series

STEP = "step"


@dataclass(frozen=True)
class Curve:
    """One file of curves/ and how its lines are drawn."""

    series: Series
    path: Path


def losses(name: str, curves: Sequence[Curve]) -> Losses | None:
    """A chart for every column of the files; None if no file exists, as when a stage came from a cache."""
    tables = [(curve.series, read_curve(curve.path)) for curve in curves if curve.path.exists()]
    columns = list(dict.fromkeys(column for _, table in tables for column in table))
    charts = [
        Figure(
            column.replace("_", " "),
            "",
            line_chart(
                f"{name}, {column}",
                "update",
                [
                    Line(series.name, series.color, table[column], series.dashed)
                    for series, table in tables
                    if column in table
                ],
            ),
        )
        for column in columns
    ]
    return Losses(name, list(dict.fromkeys(series for series, _ in tables)), charts) if charts else None


def read_curve(path: Path) -> dict[str, list[Point]]:
    """The points of each column over ``step``, without empty cells. Raises UserError if the file is no such table."""
    columns: dict[str, list[Point]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                step = float(row.pop(STEP))
                values = {name: float(cell) for name, cell in row.items() if cell}
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{path}: line {number}: should hold numbers in column '{STEP}' and the others; run its stage again"
                ) from None
            for name, value in values.items():
                columns.setdefault(name, []).append(Point(step, value))
    return columns
