import pytest

from hiar.report.columns import Metric
from hiar.report.series import Series
from hiar.report.tables import comparison

GOOD = Metric("good", "Good", "", "higher")
DRIFT = Metric("drift", "Drift", "", "lower")
SPEED = Metric("speed", "Speed", "")


def table(metric, *means, references=(), se=0.01):
    def figures(values, color):
        return {
            Series(f"{color} {i}", "", color): {metric.key: {"mean": mean, "se": se, "n": 4}}
            for i, mean in enumerate(values)
        }

    return comparison("", [metric], figures(means, "c0"), figures(references, "neutral"))


def marked(one):
    return [row.cells[0].shaded for row in one.rows]


def test_the_best_and_its_equals_are_marked():
    assert marked(table(GOOD, 0.50, 0.88, 0.90)) == [False, True, True]  # .02 is within two errors of the difference
    assert marked(table(GOOD, 0.50, 0.80, 0.90)) == [False, False, True]
    assert marked(table(GOOD, 0.50, 0.87, 0.90)) == [False, False, True]  # .03 is not: the error is .0141
    assert marked(table(GOOD, 0.50, 0.90, 0.90, se=0.0)) == [False, True, True]
    assert marked(table(DRIFT, 0.50, 0.80, 0.90)) == [True, False, False]


def test_nothing_is_marked_where_all_are_alike_or_no_way_is_better():
    assert marked(table(GOOD, 0.89, 0.90)) == [False, False]
    assert marked(table(SPEED, 1.0, 3.0)) == [False, False]
    assert marked(table(GOOD, 0.1, 0.9, se=None)) == [False, False]  # nor without standard errors


def test_references_do_not_compete():
    one = table(GOOD, 0.5, 0.8, references=[1.0])
    assert marked(one) == [False, True, False]
    assert [row.reference for row in one.rows] == [False, False, True]


def test_a_student_that_mostly_shows_nothing_is_never_the_best():
    def figures(drift, visible):
        return {
            "drift": {"mean": drift, "se": 0.01, "n": 4},
            "visible": {"mean": visible, "se": 0.0, "n": 4},
        }

    shown = {
        "black": figures(0.0, 0.0),
        "flickers": figures(0.1, 0.4),
        "good": figures(0.2, 1.0),
        "bad": figures(0.9, 0.9),
        "half": figures(0.2, 0.5),  # half of the time is enough
    }
    shown["black"]["drift"]["se"] = None  # its missing error does not keep others from being marked
    students = {Series(name, "", "c0"): means for name, means in shown.items()}
    assert marked(comparison("", [DRIFT], students, {})) == [False, False, True, False, True]
    black = {series: means for series, means in students.items() if series.name == "black"}
    assert marked(comparison("", [DRIFT], black, {})) == [False]
    able = {series: means for series, means in students.items() if series.name in ("black", "good")}
    assert marked(comparison("", [DRIFT], able, {})) == [False, True]


@pytest.mark.parametrize(
    ("mean", "se", "shown"),
    [
        (0.98765, 0.0123, ("0.988", "0.012")),
        (123.4567, 2.0, ("123.5", "2.0")),
        (-123.4567, 2.0, ("-123.5", "2.0")),
        (0.5, None, ("0.500", "")),
    ],
)
def test_figures_are_short(mean, se, shown):
    cell = table(GOOD, mean, se=se).rows[0].cells[0]
    assert (cell.mean, cell.error) == shown
