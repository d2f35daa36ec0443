"""The report's columns: what profiles and dimensions add, and that everybody means the same by better."""

from __future__ import annotations

import pytest
import yaml
from sampled import ROOT

from hiar.report.columns import DRIFT, METRICS, drift_columns, vbench_columns
from hiar.statistics.claims import TABLES
from hiar.vbench.dimensions import DIMENSIONS

QUALITY, SEMANTIC = (
    [name for name, one in DIMENSIONS.items() if one.group == group] for group in ("quality", "semantic")
)


@pytest.mark.parametrize("world", ["shapes", "wan"])
def test_the_papers_tables_and_the_report_mean_the_same_by_better(world: str) -> None:
    """Of speed the report says neither."""
    columns = [*METRICS, *drift_columns(list(DRIFT)), *vbench_columns(list(DIMENSIONS))]
    ways = {column.key: column.better for column in columns}
    measures = yaml.safe_load((ROOT / TABLES).read_text())["measures"][world].values()
    said = {one["metric"]: one["better"] for one in measures}
    told = {metric: ways[metric] for metric in said if ways.get(metric) is not None}
    assert said.items() >= told.items()
    assert len(told) >= 4


@pytest.mark.parametrize(
    ("dimensions", "more"),
    [
        (QUALITY, ["quality"]),
        (QUALITY[1:] + SEMANTIC[:2], []),
        (SEMANTIC, ["semantic"]),
        (QUALITY[:3] + SEMANTIC, ["semantic"]),
        (QUALITY + SEMANTIC, ["quality", "semantic", "total"]),
        ([], []),
    ],
)
def test_wholes_are_columns_where_all_that_they_are_made_of_are(dimensions: list[str], more: list[str]) -> None:
    keys = [column.key for column in vbench_columns(dimensions)]
    assert keys == [f"vbench_{name}" for name in (*dimensions, *more)]


def test_a_score_of_drift_has_its_floor_beside_it() -> None:
    columns = drift_columns(["drift-lite", "drift"])
    assert [column.key for column in columns] == ["drift_lite", "drift_lite_floor", "drift", "drift_floor"]
    assert {column.better for column in columns[1::2]} == {None}  # of noise alone none is good
