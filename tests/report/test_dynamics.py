"""The report's charts of validations."""

from hiar.report.columns import METRICS
from hiar.report.dynamics import dynamics
from hiar.report.series import Series
from hiar.statistics.validations import BOTH_WAYS, Validated, correlation

HIAR, WITHOUT = Series("HiAR", "", "c1"), Series("HiAR without forward-KL", "", "c2")


def course(speeds, both=None, first=10):
    return [
        Validated(
            first + 10 * place,
            {"smoothed_speed": speed, "good": 0.5, "residual": 1.0}
            | ({} if both is None else {BOTH_WAYS + "smoothed_speed": both[place], BOTH_WAYS + "good": 0.25}),
        )
        for place, speed in enumerate(speeds)
    ]


def test_each_student_and_mode_has_a_line_and_the_modes_a_correlation():
    falls = [3.0, 2.0, 1.5, 1.4]
    seeds = {0: course(falls, [3.1, 2.2, 1.4, 1.3]), 1: course(falls, [3.0, 1.0, 1.5, 1.0])}
    drawn = dynamics(METRICS, {WITHOUT: seeds, HIAR: {0: course(falls)}})
    assert [(chart.title, chart.note) for chart in drawn.charts] == [("Good frames", "higher is better"), ("Speed", "")]
    speed = drawn.charts[1]
    assert speed.svg.count("<polyline") == 3
    assert speed.svg.count("dashed") == 1
    assert "Speed: HiAR without forward-KL, as it walks, HiAR, as it walks, HiAR without forward-KL, bidir" in speed.svg
    assert drawn.legend == [WITHOUT, HIAR]
    [(series, text)] = drawn.together
    assert series == WITHOUT
    found = correlation(seeds, "smoothed_speed", BOTH_WAYS + "smoothed_speed")
    assert text == (
        f"r = {found.mean:.3f} [{found.interval[0]:.3f}, {found.interval[1]:.3f}]; "
        f"by seed {found.seeds[0]:.3f}, {found.seeds[1]:.3f}"
    )
    assert found.seeds[0] > 0.98 > found.seeds[1] > 0.8


def test_only_steps_at_which_all_seeds_were_validated_are_drawn():
    apart = {0: course([1.0, 3.0, 5.0, 6.0]), 1: course([4.0, 2.0, 8.0], first=20)}
    [_, speed] = dynamics(METRICS, {HIAR: apart}).charts
    points = speed.svg.split('points="')[1].split('"')[0].split()
    assert len(points) == 3
    assert sorted(points, key=lambda point: float(point.split(",")[0])) == points
    assert points[0].split(",")[1] == points[1].split(",")[1]  # (3 + 4) / 2 and (5 + 2) / 2


def test_equal_seeds_are_drawn_like_one():
    both, alone = ({seed: course([3.0, 2.5, 1.0]) for seed in range(seeds)} for seeds in (2, 1))
    assert dynamics(METRICS, {HIAR: both}).charts == dynamics(METRICS, {HIAR: alone}).charts


def test_one_training_seed_has_no_interval_and_no_validation_no_chart():
    seeds = {0: course([3.0, 2.0, 1.0], [2.0, 1.5, 0.9])}
    [(series, text)] = dynamics(METRICS, {WITHOUT: {0: course([3.0, 2.0])}, HIAR: seeds}).together
    assert series == HIAR
    assert text == "r = 0.999; one training seed, so no interval"
    assert dynamics(METRICS, {}).charts == dynamics(METRICS, {}).together == []
