"""The comparison as a short table; the report has all of it."""

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

COLUMNS = (  # those of them that the world's judge measures
    "good",
    "saturation_drift",
    "background_shift",
    "border_jump",
    "hops",
    "smoothed_speed",
)
BESIDE = (
    "Differences are taken video by video, on the same prompts and noise. Intervals over videos say how far the result "
    "would move with other videos of the same models, those over training seeds how far with another training seed."
)


def comparison_table(workspace: Path) -> str:
    """metrics/summary.json and metrics/world.json as a Markdown table, one row per model, pooled over seeds.

    Paired differences to the experiment's reference follow.
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
    parts = [
        "Mean over videos ± its standard error",
        _markdown(table, "Videos"),
        *_differences(workspace, columns, names),
    ]
    return "\n\n".join(parts)


def _differences(workspace: Path, columns: Sequence[Metric], students: Mapping[str, Series]) -> list[str]:
    """Tables of paired differences to the experiment's reference, with captions, or why there are none."""
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


def beside_tables(workspaces: Mapping[str, Path]) -> str:
    """Tables that compare experiments, by contender: their means, and their paired differences to the first one.

    Intervals of means are over training seeds if there are several, otherwise over videos.
    """
    from hiar.report.columns import METRICS
    from hiar.report.differences import difference_tables
    from hiar.report.series import Series
    from hiar.report.tables import Cell, Head, Row, Table, decimals
    from hiar.statistics.paired import VIDEOS, estimate, read_scores, values_of

    scores = {name: read_scores(workspace / VIDEOS) for name, workspace in workspaces.items()}
    first = next(iter(scores))
    parts = []
    for contender in [name for name in scores[first] if not name.startswith(("teacher/", "world/"))]:
        own = {name: found[contender] for name, found in scores.items() if contender in found}
        series = {name: Series(name, "", "c0") for name in own}
        measured = next(iter(own[first].values()))
        columns = [metric for metric in METRICS if metric.key in COLUMNS and metric.key in measured]
        means = Table(contender, [Head(metric.name, metric.definition, metric.better) for metric in columns])
        for name in own:
            cells, seeds = [], 1
            for metric in columns:
                found = estimate(values_of(own, name, metric.key))
                interval, places, seeds = found.training or found.videos, decimals(found.mean), len(found.seeds)
                half = "" if interval is None else f"{interval.half:.{places}f}"
                cells.append(Cell(f"{found.mean:.{places}f}", half))
            means.rows.append(Row(series[name], cells, seeds))
        parts += [f"{contender}, 95 % intervals", _markdown(means, "Seeds")]
        if len(own) > 1:
            over_videos, *over_seeds = difference_tables(columns, own, series, first)
            parts += [over_videos.caption, _markdown(over_videos, "Videos")]
            parts += [part for table in over_seeds for part in (table.caption, _markdown(table, "Seeds"))]
    return "\n\n".join([*parts, BESIDE])


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
