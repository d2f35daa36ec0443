import copy

import pytest
import yaml
from sampled import ROOT

from hiar.errors import UserError
from hiar.statistics.claims import TABLES, Claim, judged, read_table, verdict
from hiar.statistics.intervals import Interval
from hiar.workspace import experiment_params

REGISTERED = yaml.safe_load((ROOT / TABLES).read_text())
ABOVE, BELOW, AROUND = Interval(2.0, 1.0, 3.0, 3), Interval(-2.0, -3.0, -1.0, 3), Interval(0.0, -1.0, 1.0, 3)


@pytest.mark.parametrize(
    ("interval", "seeds", "direction", "expected"),
    [
        (ABOVE, 3, "higher", "holds"),
        (ABOVE, 3, "lower", "fails"),
        (BELOW, 3, "lower", "holds"),
        (BELOW, 3, "higher", "fails"),
        (AROUND, 3, "higher", "undecided"),
        (ABOVE, 2, "higher", "undecided"),
        (None, 1, "higher", "undecided"),
    ],
)
def test_verdict_needs_three_seeds_and_an_interval_that_excludes_0(interval, seeds, direction, expected):
    assert verdict(interval, dict.fromkeys(range(seeds), 1.0), direction) == expected


def scores(*speeds):
    """Two contenders; the first is faster by ``speeds``, one per seed; videos differ by more."""
    return {
        name: {
            (seed, video): {"speed": 3.0 * video + (speed if name == "distill/hiar" else 0.0)}
            for seed, speed in enumerate(speeds)
            for video in range(4)
        }
        for name in ("distill/hiar", "distill/other")
    }


def test_a_claim_is_judged_by_seeds_and_not_by_videos():
    moves_more = Claim("moves more", "speed", "distill/hiar", "distill/other", "higher")
    outcome, difference, interval, seeds = judged(scores(0.9, 1.0, 1.1), moves_more)
    assert (outcome, difference, seeds) == ("holds", pytest.approx(1.0), 3)
    assert (interval.n, interval.half) == (3, pytest.approx(4.3026527 * 0.1 / 3**0.5))  # t of 2 degrees of freedom
    assert judged(scores(-0.9, -1.0, -1.1), moves_more)[0] == "fails"
    assert judged(scores(0.1, 1.0, 1.9), moves_more)[0] == "undecided"  # each seed alone is clear
    assert judged(scores(0.9, 1.0), moves_more)[0] == "undecided"


@pytest.mark.parametrize("name", REGISTERED["tables"])
def test_each_table_has_an_experiment_that_compares_its_rows(name):
    params = experiment_params(ROOT, name)
    assert params.report.table == name
    assert len(params.seeds) >= 3
    rows = read_table(ROOT / TABLES, name, "shapes").rows
    assert sorted(row.contender for row in rows if not row.beside) == sorted(params.compare.students)
    for row in [row for row in rows if row.beside]:
        other = experiment_params(ROOT, f"{name}+{row.beside['shapes']}")
        assert row.contender in other.compare.students
        assert (other.seeds, other.sample, other.distill) == (params.seeds, params.sample, params.distill)
        assert other.init != params.init
    assert params.sample.caption_dropout == 0
    assert params.sample.frames == 16 * params.video.frames
    for other in REGISTERED["tables"]:
        assert experiment_params(ROOT, other).sample == params.sample  # shared stages


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda t: t["claims"][0].update(figure="Drif"),
            "Self-Forcing.figure = 'Drif': did you mean 'Drift'?",
        ),
        (lambda t: t["claims"][0].update(of="distill/hair"), "is not in any row; did you mean 'distill/hiar'?"),
        (lambda t: t["claims"][0].update(than="distill/hair"), "is not in any row; did you mean 'distill/hiar'?"),
        (lambda t: t["claims"][0].update(than=t["rows"][2]["name"]), "is not in any row; "),
        (  # whose videos are of another experiment
            lambda t: [t["rows"][2].update(contender="distill/other"), t["claims"][0].update(of="distill/other")],
            "Self-Forcing = 'distill/other': is not in any row; ",
        ),
        (lambda t: t["claims"][0].update({"is": "larger"}), "table1.claims.0.is = 'larger': input should be 'higher'"),
        (lambda t: t["rows"][1]["paper"].pop("Drift"), "]: give Quality, Semantic, Dynamic, Drift"),
        (
            lambda t: t["rows"][1]["paper"].update(Motion=0.5),
            "'Motion', 'Quality', 'Semantic']: give Quality, Semantic, Dynamic, Drift",
        ),
        (lambda t: t["rows"][2].update(contender=None), "table1.rows.2.lacks = None: give it or a contender"),
        (lambda t: t["rows"][1].update(lacks="x"), "table1.rows.1.lacks = 'x': give it or a contender"),
    ],
)
def test_invalid_tables_are_refused_with_the_field_and_a_hint(tmp_path, spoil, message):
    document = copy.deepcopy(REGISTERED)
    spoil(document["tables"]["table1"])
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError) as caught:
        read_table(path, "table1", "shapes")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: tables.table1")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda document: document["measures"]["wan"].update(Drifts=document["measures"]["wan"].pop("Drift")),
            "did you mean 'Drift'",
        ),
        (
            lambda document: [
                document["tables"]["table1"]["columns"].append("Smoothnes"),
                *(row["paper"].update(Smoothnes=0.5) for row in document["tables"]["table1"]["rows"]),
            ],
            "tables.table1.columns = 'Smoothnes': did you mean 'Smoothness'?",
        ),
        (
            lambda document: document["measures"].pop("shapes"),
            "measures: has no entry for a world of kind 'shapes'; add its metrics",
        ),
    ],
)
def test_figures_without_a_measure_are_refused(tmp_path, spoil, message):
    document = copy.deepcopy(REGISTERED)
    spoil(document)
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError) as caught:
        read_table(path, "table1", "shapes")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_figures_and_claims_that_a_world_cannot_measure_are_left_out(tmp_path):
    document = copy.deepcopy(REGISTERED)
    del document["measures"]["shapes"]["Drift"]
    path = tmp_path / "tables.yaml"
    path.write_text(yaml.safe_dump(document))
    whole, part = (read_table(one, "table1", "shapes") for one in (ROOT / TABLES, path))
    assert [column for column in whole.columns if column.stands_for != "Drift"] == part.columns != whole.columns
    assert (whole.unmeasured, part.unmeasured) == ([], ["Drift"])
    drift = REGISTERED["measures"]["shapes"]["Drift"]["metric"]
    assert [claim for claim in whole.claims if claim.metric != drift] == part.claims != whole.claims


def test_a_claims_direction_is_reversed_for_a_metric_of_opposite_sense():
    claims = {world: read_table(ROOT / TABLES, "table2", world).claims for world in REGISTERED["measures"]}
    jumps = {world: next(one for one in found if "jumps at" in one.says) for world, found in claims.items()}
    assert {world: (one.metric, one.direction) for world, one in jumps.items()} == {
        "shapes": ("border_jump", "higher"),
        "wan": ("vbench_motion_smoothness", "lower"),
    }


def test_no_such_table():
    with pytest.raises(UserError, match="holds no table 'table9'; did you mean"):
        read_table(ROOT / TABLES, "table9", "shapes")
