"""Charts along the videos: each part is drawn at its middle, in seconds of its model's videos."""

import re
import xml.etree.ElementTree as ET

import pytest

from hiar.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from hiar.report.curves import along_the_video
from hiar.report.series import Series

LONG, SHORT = Series("HiAR", "", "c0"), Series("Teacher", "", "neutral")


def figures(mean, se):
    return {
        f"{name}_segment_{part}": {"mean": mean, "se": se, "n": 2}
        for name in ("good", "saturation_shift")
        for part in range(1, 6)
    }


def test_parts_are_at_their_middles_in_seconds():
    (good,) = along_the_video(
        {LONG: figures(0.5, 0.1), SHORT: figures(0.25, None)}, {LONG: 10.0, SHORT: 2.5}, 5, ["good"]
    )
    svg = ET.fromstring(good.svg)
    across = (WIDTH - RIGHT - LEFT) / 9  # the axis ends at 9 s, the middle of the last part
    down = HEIGHT - BOTTOM - TOP
    long, short = (
        [tuple(map(float, place.split(","))) for place in one.get("points").split()] for one in svg.findall("polyline")
    )
    assert [x for x, _ in long] == pytest.approx([LEFT + across * second for second in (1, 3, 5, 7, 9)], abs=0.051)
    assert [x for x, _ in short] == pytest.approx(
        [LEFT + across * second for second in (0.25, 0.75, 1.25, 1.75, 2.25)], abs=0.051
    )
    # Shares are always drawn on an axis from 0 to 1.
    assert [y for _, y in long] == pytest.approx(5 * [TOP + 0.5 * down], abs=0.051)
    assert [y for _, y in short] == pytest.approx(5 * [TOP + 0.75 * down], abs=0.051)
    (band,) = svg.findall("polygon")
    heights = [float(place.split(",")[1]) for place in band.get("points").split()]
    assert heights == pytest.approx(5 * [TOP + 0.4 * down] + 5 * [TOP + 0.6 * down], abs=0.051)
    assert "HiAR, part 2 of 5: 0.500 ± 0.100" in re.findall("<title>(.*?)</title>", good.svg)


def test_each_part_has_its_own_value_and_error():
    rising = {f"good_segment_{part}": {"mean": part / 10, "se": part / 100, "n": 2} for part in range(1, 6)}
    walked = Series("HiAR, walked", "", "c1", dashed=True)
    (good,) = along_the_video(
        {LONG: rising, walked: figures(0.5, None)}, dict.fromkeys((LONG, walked), 10.0), 5, ["good"]
    )
    line, other = ET.fromstring(good.svg).findall("polyline")
    heights = [(HEIGHT - BOTTOM - float(place.split(",")[1])) for place in line.get("points").split()]
    assert heights == pytest.approx([part / 10 * (HEIGHT - BOTTOM - TOP) for part in range(1, 6)], abs=0.051)
    assert re.findall("<title>HiAR, (.*?)</title>", good.svg)[:5] == [
        f"part {part} of 5: {part / 10:.3f} ± {part / 100:.3f}" for part in range(1, 6)
    ]
    assert ["dashed" in one.get("class") for one in (line, other)] == [False, True]


def test_only_what_the_judge_shows_along_the_video_is_drawn():
    drawn = along_the_video({LONG: figures(0.5, 0.1)}, {LONG: 10.0}, 5, ["saturation_shift"])
    assert [one.title for one in drawn] == ["Saturation shift"]
    assert along_the_video({LONG: figures(0.5, 0.1)}, {LONG: 10.0}, 5, []) == []
