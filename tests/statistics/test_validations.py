"""Reading validations, and the correlation of two courses over several trainings."""

import json

import numpy as np
import pytest
from scipy import stats

from hiar.errors import UserError
from hiar.statistics.validations import SCORES, Validated, correlation, read_validations


def taken(one, other):
    return [Validated(10 * step, {"a": a, "b": b}) for step, (a, b) in enumerate(zip(one, other, strict=True))]


def courses(seed, points=12):
    random = np.random.default_rng(seed)
    fall = np.linspace(3, 1, points)
    return fall + 0.2 * random.standard_normal(points), fall + 0.4 * random.standard_normal(points)


def test_r_of_each_seed_and_an_interval_of_their_z():
    seeds = {seed: courses(seed) for seed in range(3)}
    found = correlation({seed: taken(*both) for seed, both in seeds.items()}, "a", "b")
    each = [stats.pearsonr(*both).statistic for both in seeds.values()]
    assert [*found.seeds.values()] == pytest.approx(each)
    z = np.arctanh(each)
    ends = stats.t.interval(0.95, 2, loc=z.mean(), scale=stats.sem(z))
    assert (found.mean, *found.interval) == pytest.approx((np.tanh(z.mean()), *np.tanh(ends)))
    assert found.interval[0] < found.mean < found.interval[1] < 1


def test_one_training_has_no_interval_and_equal_courses_an_r_of_1():
    one, other = courses(0)
    assert correlation({7: taken(one, other)}, "a", "b").interval is None
    found = correlation({0: taken(one, 2 * one), 1: taken(one, -one)}, "a", "b")
    assert [*found.seeds.values()] == pytest.approx([1, -1])
    assert found.mean == pytest.approx(0)


def test_what_cannot_be_correlated_is_left_open():
    one, other = courses(0)
    assert correlation({}, "a", "b") is None
    assert correlation({0: taken(one[:2], other[:2])}, "a", "b") is None
    assert correlation({0: taken(one[:3], other[:3])}, "a", "b") is not None
    assert correlation({0: taken(one, other), 1: taken(one[:2], other[:2])}, "a", "b") is None
    assert correlation({0: taken(one, np.ones(12))}, "a", "b") is None
    assert correlation({0: taken(one, other)}, "a", "c") is None


def test_reading(tmp_path):
    assert read_validations(tmp_path) == []
    path = tmp_path / SCORES
    path.parent.mkdir()
    rows = [{"step": step, "metrics": {"good": step / 10}} for step in (5, 10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_validations(tmp_path) == [Validated(5, {"good": 0.5}), Validated(10, {"good": 1.0})]
    for broken in ("{", '{"step": 5}\n', '{"step": 5, "metrics": [1]}\n', "[]\n"):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"scores\.jsonl: is not a table of validations .*train this student again"):
            read_validations(tmp_path)
