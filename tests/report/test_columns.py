"""The report's columns: those that profiles and dimensions add, and which direction is better."""

from __future__ import annotations

import pytest
import torch
import yaml
from sampled import ROOT

from hiar.judges.interface import open_judge
from hiar.parameters import load_params
from hiar.report.columns import DRIFT, METRICS, drift_columns, rank, vbench_columns
from hiar.statistics.claims import TABLES
from hiar.vbench.dimensions import DIMENSIONS
from hiar.worlds.shapes.render import clips

QUALITY, SEMANTIC = (
    [name for name, one in DIMENSIONS.items() if one.group == group] for group in ("quality", "semantic")
)


@pytest.mark.parametrize("world", ["shapes", "wan"])
def test_the_papers_tables_and_the_report_mean_the_same_by_better(world: str) -> None:
    """Where the report has a better direction: for speed it has none."""
    columns = [*METRICS, *drift_columns(list(DRIFT)), *vbench_columns(list(DIMENSIONS))]
    ways = {column.key: column.better for column in columns}
    measures = yaml.safe_load((ROOT / TABLES).read_text())["measures"][world].values()
    papers = {one["metric"]: one["better"] for one in measures}
    ours = {metric: ways[metric] for metric in papers if ways.get(metric) is not None}
    assert papers.items() >= ours.items()
    assert len(ours) >= 4
    # A ranking has the same direction; where the report has none, larger is first.
    assert {key: "lower" if rank(key, 1.0) > rank(key, 2.0) else "higher" for key in ways} == {
        key: better or "higher" for key, better in ways.items()
    }


def test_a_true_video_is_better_than_a_damaged_one_in_every_column_that_says_so() -> None:
    """Damaged: fades into noise of another colour, with shifted blocks and an empty end."""
    params = load_params(ROOT / "params.yaml")
    true, captions = clips(params.world, seed=3, first=0, count=4, frames=30)
    damage = torch.arange(30).div(29).view(1, -1, 1, 1, 1)
    noise = torch.randint(256, true.shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.2, 0.0])
    broken = true.clone()
    for block in range(3, 30, 6):
        broken[:, block : block + 3] = broken[:, block : block + 3].roll(24, dims=3)
    broken = torch.lerp(broken.float(), noise, damage).byte()
    broken[:, 24:] = 40
    judge = open_judge(params.world, params.score, 3, 3)
    good, bad = (judge.measure(judge.look(frames, None, captions)) for frames in (true, broken))
    better = {
        metric.key: "higher" if good[metric.key].mean() > bad[metric.key].mean() else "lower"
        for metric in METRICS
        if metric.better is not None
    }
    assert better == {metric.key: metric.better for metric in METRICS if metric.better is not None}


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
def test_totals_are_columns_only_with_all_of_their_dimensions(dimensions: list[str], more: list[str]) -> None:
    keys = [column.key for column in vbench_columns(dimensions)]
    assert keys == [f"vbench_{name}" for name in (*dimensions, *more)]


def test_a_score_of_drift_has_its_floor_beside_it() -> None:
    columns = drift_columns(["drift-lite", "drift"])
    assert [column.key for column in columns] == ["drift_lite", "drift_lite_floor", "drift", "drift_floor"]
    assert {column.better for column in columns[1::2]} == {None}  # for a noise floor alone, no direction is better
