"""Reading validations, and the correlation of two metrics over several trainings."""

import json

import numpy as np
import pytest
from scipy import stats

from hiar.errors import UserError
from hiar.statistics.validations import SCORES, Validated, correlation, read_validations


def validations(one, other):
    return [Validated(10 * step, {"a": a, "b": b}) for step, (a, b) in enumerate(zip(one, other, strict=True))]


def curves(seed, points=12):
    random = np.random.default_rng(seed)
    fall = np.linspace(3, 1, points)
    return fall + 0.2 * random.standard_normal(points), fall + 0.4 * random.standard_normal(points)


def test_correlation_is_r_per_seed_with_an_interval_of_fishers_z():
    seeds = {seed: curves(seed) for seed in range(3)}
    found = correlation({seed: validations(*both) for seed, both in seeds.items()}, "a", "b")
    each = [stats.pearsonr(*both).statistic for both in seeds.values()]
    assert [*found.seeds.values()] == pytest.approx(each)
    z = np.arctanh(each)
    ends = stats.t.interval(0.95, 2, loc=z.mean(), scale=stats.sem(z))
    assert (found.mean, *found.interval) == pytest.approx((np.tanh(z.mean()), *np.tanh(ends)))
    assert found.interval[0] < found.mean < found.interval[1] < 1


def test_one_training_has_no_interval_and_proportional_curves_an_r_of_1():
    one, other = curves(0)
    assert correlation({7: validations(one, other)}, "a", "b").interval is None
    found = correlation({0: validations(one, 2 * one), 1: validations(one, -one)}, "a", "b")
    assert [*found.seeds.values()] == pytest.approx([1, -1])
    assert found.mean == pytest.approx(0)


def test_too_few_constant_or_missing_values_have_no_correlation():
    one, other = curves(0)
    assert correlation({}, "a", "b") is None
    assert correlation({0: validations(one[:2], other[:2])}, "a", "b") is None
    assert correlation({0: validations(one[:3], other[:3])}, "a", "b") is not None
    assert correlation({0: validations(one, other), 1: validations(one[:2], other[:2])}, "a", "b") is None
    assert correlation({0: validations(one, np.ones(12))}, "a", "b") is None
    assert correlation({0: validations(one, other)}, "a", "c") is None


def test_validations_are_read_and_broken_files_refused(tmp_path):
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
