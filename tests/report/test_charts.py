import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiar.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Line,
    Point,
    line_chart,
    thin,
    tick_label,
)

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)
EDGE = 0.051  # coordinates are written with one decimal


def drawn(line):
    """The polyline's points in the drawing."""
    svg = ET.fromstring(line_chart("chart", "x", [line]))
    return [tuple(map(float, place.split(","))) for place in svg.find("polyline").get("points").split()]


@given(st.lists(st.builds(Point, st.floats(0, 1e6), FINITE, st.floats(0, 1e3)), min_size=1, max_size=20))
def test_everything_lies_inside_the_axes(points):
    for x, y in drawn(Line("line", "c0", points)):
        assert LEFT - EDGE <= x <= WIDTH - RIGHT + EDGE
        assert TOP - EDGE <= y <= HEIGHT - BOTTOM + EDGE


def test_bands_reach_as_far_above_as_below_and_are_not_cut_off():
    svg = ET.fromstring(
        line_chart("chart", "x", [Line("line", "c0", [Point(0, -1, 5), Point(1, 2, 3), Point(2, 0, 8)])])
    )
    band, line = (
        [place.split(",") for place in svg.find(name).get("points").split()] for name in ("polygon", "polyline")
    )
    reach = []
    for (x, on), (left, above), (right, below) in zip(line, band[:3], band[:2:-1], strict=True):
        assert left == x == right
        assert TOP - EDGE <= float(above) < float(below) <= HEIGHT - BOTTOM + EDGE
        assert float(on) - float(above) == pytest.approx(float(below) - float(on), abs=3 * EDGE)
        reach.append(float(below) - float(above))
    assert reach == pytest.approx([reach[2] * 5 / 8, reach[2] * 3 / 8, reach[2]], abs=3 * EDGE)


def test_axes_begin_at_0_where_nothing_is_below():
    svg = ET.fromstring(line_chart("chart", "x", [Line("line", "c0", [Point(1000, 70), Point(2500, 80)])]))
    marks = [(text.get("text-anchor"), text.text) for text in svg.findall("text")]
    assert [text for anchor, text in marks if anchor == "end"] == ["0", "20", "40", "60", "80"]
    assert [text for anchor, text in marks if anchor == "middle"] == ["0", "500", "1k", "1.5k", "2k", "2.5k", "x"]
    (label,) = [text for text in svg.findall("text") if text.text == "x"]
    assert float(label.get("x")) == pytest.approx((LEFT + WIDTH - RIGHT) / 2, abs=EDGE)
    below = line_chart("chart", "x", [Line("line", "c0", [Point(0, -2000), Point(1, -500)])])
    assert ">-2k<" in below
    assert ">-500<" in below
    assert ">0<" in below


def test_higher_values_are_higher_up():
    (x0, y0), (x1, y1) = drawn(Line("line", "c0", [Point(0, 1), Point(1, 2)]))
    assert x0 < x1
    assert y0 > y1


def test_values_outside_of_a_given_range_are_drawn_at_its_end():
    assert [Axis(1, 3, 0, 100).at(value) for value in (0, 1, 2, 3, 9)] == [0, 0, 50, 100, 100]
    assert [Axis(1, 100, 0, 100, log=True).at(value) for value in (-5, 0.1, 10, 1e3)] == pytest.approx([0, 0, 50, 100])


def test_wide_ranges_are_logarithmic():
    places = [y for _, y in drawn(Line("line", "c0", [Point(0, 1), Point(1, 10), Point(2, 100)]))]
    assert places[0] - places[1] == pytest.approx(places[1] - places[2], abs=2 * EDGE)


def test_a_logarithmic_axis_has_ticks_where_it_holds_no_power_of_ten():
    assert Axis(2, 70, 0, 100, log=True).ticks() == [2, 70]
    assert Axis(0.5, 200, 0, 100, log=True).ticks() == pytest.approx([1, 10, 100])


@pytest.mark.parametrize(("high", "step"), [(4, 1), (8, 2), (19, 2), (20, 5), (40, 10), (0.9, 0.2)])
def test_ticks_are_round(high, step):
    ticks = Axis(0, high, 0, 100).ticks()
    assert ticks == pytest.approx([step * n for n in range(len(ticks))])
    assert ticks[-1] + step > high


@given(low=FINITE, span=st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low, span):
    ticks = Axis(low, low + span, 0, 100).ticks()
    slack = 1e-6 * max(abs(low), span)
    assert 1 <= len(ticks) <= 11
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (0.25, "0.25"), (999.4, "999"), (999.6, "1k"), (-2500.0, "-2.5k"), (12345.6, "12.346k")],
)
def test_ticks_are_labelled_without_powers_of_ten(value, said):
    assert tick_label(value) == said


def test_long_lines_are_thinned_without_moving_their_mean():
    points = [Point(i, i % 7) for i in range(1000)]
    thinned = thin(points)
    assert len(thinned) <= POINTS
    assert sum(p.x for p in thinned) / len(thinned) == pytest.approx(sum(p.x for p in points) / 1000, rel=0.01)
    assert thin(points[:POINTS]) == points[:POINTS]
    assert {one.error for one in thin([Point(i, 0, 0.5) for i in range(1000)])} == {0.5}


def test_names_are_escaped_and_notes_kept():
    svg = line_chart("<b>", "x & y", [Line("a<b", "c0", [Point(0, 1, note="1 < 2"), Point(1, 1)])])
    assert "<b>" not in svg
    assert [title.text for title in ET.fromstring(svg).findall("circle/title")] == ["1 < 2"]
    assert len(ET.fromstring(svg).findall("circle")) == 1  # a point without a note has no dot


def test_a_chart_of_nothing_is_refused():
    with pytest.raises(ValueError, match="chart: nothing to draw"):
        line_chart("chart", "x", [Line("line", "c0", [])])
