import json
from pathlib import Path

import pytest

from hiar.errors import UserError
from hiar.vbench.dimensions import DIMENSIONS
from hiar.vbench.totals import totals

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vbench_totals.json").read_text())


@pytest.mark.parametrize("case", GOLDEN, ids=[str(number) for number in range(len(GOLDEN))])
def test_totals_are_those_of_the_leaderboards_script(case):
    wanted = tuple(case[name] for name in ("quality", "semantic", "total"))
    strict = totals(case["dimensions"], strict=True)
    assert strict[:3] == pytest.approx(wanted, abs=1e-9)
    assert set(strict.missing) == set(case["missing"])
    if not case["missing"]:
        assert totals(case["dimensions"])[:3] == strict[:3]


def test_the_golden_file_has_sixty_cases_twenty_with_gaps():
    assert (len(GOLDEN), sum(bool(case["missing"]) for case in GOLDEN)) == (60, 20)


def test_the_total_is_four_parts_quality_and_one_part_semantic():
    raw = {
        name: one.low + {"quality": 0.846, "semantic": 0.723}[one.group] * (one.high - one.low)
        for name, one in DIMENSIONS.items()
    }
    assert totals(raw)[:3] == pytest.approx((0.846, 0.723, 0.8214), abs=1e-12)


def test_a_missing_dimension_leaves_its_totals_open():
    values = dict.fromkeys(DIMENSIONS, 0.5)
    whole = totals(values)
    del values["scene"]
    found = totals(values)
    assert (found.quality, found.semantic, found.total, found.missing) == (whole.quality, None, None, ("scene",))
    # the leaderboard counts it as a raw 0, which any positive value would hide
    assert totals(values, strict=True) == totals(values | {"scene": 0.0})._replace(missing=("scene",))


def test_unknown_dimensions_are_refused():
    with pytest.raises(UserError, match="did you mean 'imaging_quality'"):
        totals({"image_quality": 0.5})
