import pytest

from hiar.errors import UserError
from hiar.report.losses import Curve, losses, read_curve
from hiar.report.series import Series


def test_empty_cells_are_left_out(tmp_path):
    path = tmp_path / "curve.csv"
    path.write_text("step,critic,dmd\n0,2.5,\n1,2,0.5\n")
    curve = read_curve(path)
    assert [(point.x, point.y) for point in curve["critic"]] == [(0, 2.5), (1, 2)]
    assert [(point.x, point.y) for point in curve["dmd"]] == [(1, 0.5)]


def test_each_column_has_a_chart_with_a_line_per_file(tmp_path):
    names = ("one", "two", "missing")
    for name, column in zip(names, ("loss", "loss"), strict=False):
        (tmp_path / f"{name}.csv").write_text(f"step,{column},{name}\n0,1,2\n1,2,3\n")
    found = losses("Stage", [Curve(Series(name, "", "c0"), tmp_path / f"{name}.csv") for name in names])
    assert [chart.title for chart in found.charts] == ["loss", "one", "two"]
    assert [chart.svg.count("<polyline") for chart in found.charts] == [2, 1, 1]
    assert [series.name for series in found.legend] == ["one", "two"]
    solid, dashed = (Curve(Series(name, "", "c0", name == "two"), tmp_path / f"{name}.csv") for name in names[:2])
    assert [chart.svg.count("dashed") for chart in losses("Stage", [solid, dashed]).charts] == [1, 0, 1]


def test_no_file_no_section(tmp_path):
    assert losses("Stage", [Curve(Series("one", "", "c0"), tmp_path / "one.csv")]) is None


@pytest.mark.parametrize(
    ("text", "line"),
    [("step,loss\n0,x\n", 2), ("loss\n1\n", 2), ("step,loss\n0,1\n,2\n", 3), ("step,loss\n0,1,2,3\n", 2)],
)
def test_broken_tables_are_named(tmp_path, text, line):
    path = tmp_path / "curve.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"curve\.csv: line {line}: should hold numbers"):
        read_curve(path)
