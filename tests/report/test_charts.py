import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiar.report.charts import BOTTOM, HEIGHT, LEFT, POINTS, RIGHT, TOP, WIDTH, Axis, Line, Point, line_chart, thin

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)
EDGE = 0.051  # coordinates are written with one decimal


def drawn(line):
    """The polyline's places in the drawing."""
    svg = ET.fromstring(line_chart("chart", "x", [line]))
    return [tuple(map(float, place.split(","))) for place in svg.find("polyline").get("points").split()]


@given(st.lists(st.builds(Point, st.floats(0, 1e6), FINITE, st.floats(0, 1e3)), min_size=1, max_size=20))
def test_everything_lies_inside_the_axes(points):
    for x, y in drawn(Line("line", "c0", points)):
        assert LEFT - EDGE <= x <= WIDTH - RIGHT + EDGE
        assert TOP - EDGE <= y <= HEIGHT - BOTTOM + EDGE


def test_higher_values_are_higher_up():
    (x0, y0), (x1, y1) = drawn(Line("line", "c0", [Point(0, 1), Point(1, 2)]))
    assert x0 < x1
    assert y0 > y1


def test_wide_ranges_are_logarithmic():
    places = [y for _, y in drawn(Line("line", "c0", [Point(0, 1), Point(1, 10), Point(2, 100)]))]
    assert places[0] - places[1] == pytest.approx(places[1] - places[2], abs=2 * EDGE)


@given(low=FINITE, span=st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low, span):
    ticks = Axis(low, low + span, 0, 100).ticks()
    slack = 1e-6 * max(abs(low), span)
    assert 1 <= len(ticks) <= 11
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


def test_long_lines_are_thinned_without_moving_their_mean():
    points = [Point(i, i % 7) for i in range(1000)]
    thinned = thin(points)
    assert len(thinned) <= POINTS
    assert sum(p.x for p in thinned) / len(thinned) == pytest.approx(sum(p.x for p in points) / 1000, rel=0.01)
    assert thin(points[:POINTS]) == points[:POINTS]


def test_names_are_escaped_and_notes_kept():
    svg = line_chart("<b>", "x & y", [Line("a<b", "c0", [Point(0, 1, note="1 < 2"), Point(1, 1)])])
    assert "<b>" not in svg
    assert ET.fromstring(svg).find("circle/title").text == "1 < 2"


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="chart: nothing to draw"):
        line_chart("chart", "x", [Line("line", "c0", [])])
