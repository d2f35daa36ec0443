import re

import pytest
from sampled import ROOT

from hiar.parameters import parse_params
from hiar.report.charts import BOTTOM, HEIGHT, TOP
from hiar.report.columns import METRICS
from hiar.report.front import front, front_legend
from hiar.stages.comparison import levels_compared
from hiar.workspace import experiment_params


def scores(levels):
    """Good frames fall by a tenth from clean context to HiAR's; a walked student is a little better."""
    return {
        name: {
            (seed, video): {
                "good": 0.9 - 0.1 * level + 0.01 * name.startswith("walked") + 0.01 * (video - 1),
                "hops": 1.0,
            }
            for seed in (0, 1)
            for video in range(3)
        }
        for of in levels.values()
        for level, name in of.items()
    }


def test_levels_of_the_front():
    levels = levels_compared(experiment_params(ROOT, "front"))
    assert levels == {
        "variants like hiar, trained at c": {
            1.0: "distill/hiar",
            0.85: "distill/c85",
            0.7: "distill/c70",
            0.5: "distill/c50",
            0.0: "distill/c0",
        },
        "hiar, walked at c": {
            1.0: "distill/hiar",
            0.95: "walked/hiar/c95",
            0.85: "walked/hiar/c85",
            0.7: "walked/hiar/c70",
            0.5: "walked/hiar/c50",
            0.0: "walked/hiar/c0",
        },
    }


@pytest.mark.parametrize("other", [{"forward_kl": None}, {"order": "diagonal"}])
def test_a_line_joins_students_that_differ_in_the_level_alone(other):
    """A line needs three levels; a student with another difference in training joins none."""
    plain = experiment_params(ROOT, "front").model_dump(mode="json")
    tree = plain | {"compare": plain["compare"] | {"init": [], "distill": ["hiar", "c85", "c70"], "walked": []}}
    alike = levels_compared(parse_params(tree, "mine.yaml"))
    assert [list(of) for of in alike.values()] == [[1.0, 0.85, 0.7]]
    tree["variants"] = tree["variants"] | {"c70": tree["variants"]["c70"] | other}
    assert levels_compared(parse_params(tree, "mine.yaml")) == {}


def test_experiments_of_one_level_have_no_front():
    levels = levels_compared(experiment_params(ROOT, "table3"))
    assert levels == {}
    assert front(METRICS, {}, levels) == []


def test_bands_lie_inside_the_chart_and_equal_values_have_one_too():
    levels = levels_compared(experiment_params(ROOT, "front"))
    speed = [one for one in METRICS if one.key == "good"]
    (drawn,) = front(speed, scores(levels), levels)
    bands = re.findall('<polygon[^>]* points="(.*?)"', drawn.svg)
    heights = [float(place.split(",")[1]) for one in bands for place in one.split()]
    margin = (HEIGHT - TOP - BOTTOM) / 12  # a tenth of what lies between two of them
    assert (min(heights), max(heights)) == pytest.approx((TOP + margin, HEIGHT - BOTTOM - margin), abs=0.1)
    same = {
        name: {video: {"good": 0.5} for video in ((0, 0), (0, 1))} for of in levels.values() for name in of.values()
    }
    (flat,) = front(speed, same, levels)
    assert {float(y) for y in re.findall('<circle[^>]* cy="(.*?)"', flat.svg)} == {(TOP + HEIGHT - BOTTOM) / 2}


def test_a_single_video_has_no_band():
    levels = levels_compared(experiment_params(ROOT, "front"))
    alone = {name: {(0, 0): of[0, 0]} for name, of in scores(levels).items()}
    (drawn,) = front([one for one in METRICS if one.key == "good"], alone, levels)
    assert "polygon" not in drawn.svg
    assert "distill/c85 at 0.85: 0.8050 ± 0.0000, by seed: 0.8050" in drawn.svg


def test_each_metric_has_a_chart_with_a_dot_per_level():
    levels = levels_compared(experiment_params(ROOT, "front"))
    (good,) = front([one for one in METRICS if one.key in ("good", "hops")], scores(levels), levels)
    assert (good.title, good.note) == ("Good frames", "higher is better")
    notes = re.findall("<title>(.*?)</title>", good.svg)
    assert len(notes) == 11
    assert "distill/c85 at 0.85: 0.8150 ± 0.0113, by seed: 0.8150, 0.8150" in notes
    assert "walked/hiar/c85 at 0.85: 0.8250 ± 0.0113, by seed: 0.8250, 0.8250" in notes
    assert [series.color for series in front_legend(levels).values()] == ["c0", "c1"]
    # The lowest level is on the left, and better, so higher up.
    x, y = zip(*re.findall(r'<circle class="dot c1" cx="([\d.]+)" cy="([\d.]+)"', good.svg), strict=True)
    assert [float(v) for v in x] == sorted(float(v) for v in x)
    assert [float(v) for v in y] == sorted(float(v) for v in y)
