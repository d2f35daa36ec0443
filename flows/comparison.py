"""The comparison as a table for people in a hurry; the report has all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiar.parameters import load_params

if TYPE_CHECKING:
    from hiar.report.columns import Metric
    from hiar.report.series import Series
    from hiar.report.tables import Table

COLUMNS = (  # as far as a world's judge measures them
    "good",
    "saturation_drift",
    "background_shift",
    "border_jump",
    "hops",
    "smoothed_speed",
)


def comparison_table(workspace: Path) -> str:
    """metrics/summary.json and metrics/world.json as a Markdown table, a row a model, pooled over seeds.

    Below it the paired differences to the experiment's reference.
    """
    from hiar.metrics.summary import pool
    from hiar.report.columns import METRICS
    from hiar.report.series import TRUTH, model_series
    from hiar.report.tables import comparison
    from hiar.stages.comparison import read_summary

    rows: dict[Series, list[dict[str, Any]]] = {}
    teachers, names = set(), {}
    results = read_summary(load_params(workspace / "params.yaml"), workspace)
    variants = list(dict.fromkeys(name for row in results for name in row["variant"].split("/")))
    for row in results:
        series = model_series(row["stage"], row["variant"], row["order"], variants)
        rows.setdefault(series, []).append(row["metrics"])
        if row["stage"] == "teacher":
            teachers.add(series)
        else:
            names[f"{row['stage']}/{row['variant']}"] = series
    if truth := _read(workspace / "metrics" / "world.json"):
        rows[TRUTH] = [row["metrics"] for row in truth]
    columns = [metric for metric in METRICS if metric.key in COLUMNS and metric.key in results[0]["metrics"]]
    figures = {
        series: {metric.key: pool([seed[metric.key] for seed in seeds]) for metric in columns}
        for series, seeds in rows.items()
    }
    students = {series: means for series, means in figures.items() if series not in teachers | {TRUTH}}
    references = {series: means for series, means in figures.items() if series not in students}
    table = comparison("", columns, students, references)
    parts = [_markdown(table, "Videos"), *_differences(workspace, columns, names)]
    return "\n\n".join(parts)


def _differences(workspace: Path, columns: Sequence[Metric], students: Mapping[str, Series]) -> list[str]:
    """Tables of paired differences to the experiment's reference with their captions, or why there are none."""
    from hiar.parameters import load_params
    from hiar.report.differences import difference_tables
    from hiar.statistics.paired import VIDEOS, read_scores

    reference = load_params(workspace / "params.yaml").reference
    if reference is None or len(students) < 2:
        return []
    if not (workspace / VIDEOS).exists():
        return [f"No paired differences: there is no {workspace / VIDEOS}; `hiar stage score` writes it."]
    over_videos, *over_seeds = difference_tables(columns, read_scores(workspace / VIDEOS), students, reference)
    parts = [over_videos.caption, _markdown(over_videos, "Videos")]
    for table in over_seeds:
        parts += [table.caption, _markdown(table, "Seeds")]
    return parts


def _markdown(table: Table, count: str) -> str:
    lines = [["Model", *(head.name for head in table.heads), count]]
    for line in table.rows:
        cells = [f"{cell.mean} ± {cell.error}" if cell.error else cell.mean for cell in line.cells]
        lines.append([line.series.name, *cells, str(line.n)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows
