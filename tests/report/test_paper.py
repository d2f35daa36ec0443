import csv
import io

import pytest
from sampled import ROOT

from hiar.errors import UserError
from hiar.report.paper import as_html, as_markdown, beside, claims_csv, figures_csv
from hiar.statistics.claims import TABLES, read_table
from hiar.statistics.paired import add_wholes

TABLE2 = read_table(ROOT / TABLES, "table2", "shapes")
# Means per contender: drift is in the paper's order, quality is not.
MEANS = {
    "distill/hiar-input": {"good": 0.9, "shape_right": 0.9, "border_jump": 1.5, "saturation_drift": 0.01},
    "distill/hiar": {"good": 0.7, "shape_right": 0.9, "border_jump": 1.4, "saturation_drift": 0.02},
    "distill/self-forcing": {"good": 0.8, "shape_right": 0.8, "border_jump": 1.3, "saturation_drift": 0.03},
}


def scores(leave_out=(), seeds=3):
    return {
        name: {
            (seed, video): {
                metric: mean + 0.0001 * seed * (name == "distill/hiar") + 0.1 * (video - 1)
                for metric, mean in means.items()
                if metric not in leave_out
            }
            for seed in range(seeds)
            for video in range(3)
        }
        for name, means in MEANS.items()
    }


@pytest.fixture(scope="module")
def table():
    return beside("table2", TABLE2, scores(), [("Training seeds", "0, 1, 2")])


def test_ranks_are_ours_and_the_papers(table):
    ranks = {column.metric: [] for column in table.columns}
    for line in table.lines:
        for column, figure in zip(table.columns, line.figures, strict=True):
            ranks[column.metric].append((figure.our_rank, figure.paper_rank))
    assert ranks == {
        "good": [(1, 3), (3, 1), (2, 2)],
        "shape_right": [(2, 3), (1, 1), (3, 2)],  # .9001 before .9
        "border_jump": [(3, 3), (2, 2), (1, 1)],
        "saturation_drift": [(1, 1), (2, 2), (3, 3)],
    }


def test_smoothness_of_the_paper_is_better_where_it_is_higher():
    smoothness = next(column for column in TABLE2.columns if column.stands_for == "Smoothness")
    assert (smoothness.better, smoothness.paper_better) == ("lower", "higher")


def test_every_claim_has_a_verdict(table):
    assert {one.claim.says: one.verdict for one in table.claims} == {
        "input-level context drifts less than output-level": "holds",
        "output-level context drifts less than clean": "holds",
        "input-level context costs quality": "fails",
        "input-level context jumps at block borders": "holds",
        "clean context jumps less than output-level": "holds",
    }
    two = beside("table2", TABLE2, scores(seeds=2), [])
    assert {one.verdict for one in two.claims} == {"undecided"}


def test_csv_markdown_and_html_show_the_same_figures(table):
    figures = list(csv.DictReader(io.StringIO(figures_csv([table]))))
    assert len(figures) == 12
    drift = next(one for one in figures if (one["row"], one["metric"]) == ("output level, t_(j+1)", "saturation_drift"))
    assert (drift["ours"], drift["paper"], drift["rank"], drift["paper_rank"], drift["seeds"]) == (
        *("0.0201", "0.257", "2", "2", "3"),
    )
    assert float(drift["low"]) < 0.0201 < float(drift["high"])
    claims = list(csv.DictReader(io.StringIO(claims_csv([table]))))
    assert [one["verdict"] for one in claims] == ["holds", "holds", "fails", "holds", "holds"]
    drifts = claims[0]  # input-level context less than output-level
    assert (drifts["of"], drifts["than"], drifts["is"]) == ("distill/hiar-input", "distill/hiar", "lower")
    assert float(drifts["low"]) < float(drifts["difference"]) < float(drifts["high"]) < 0
    assert not [text for text in (figures_csv([table]), claims_csv([table])) if "\r" in text]
    for text in (as_markdown([table]), as_html([table])):
        for part in ("0.0201 [0.0199, 0.0203]", "0.257", "2 / 2", "fails", "Table 2", "0, 1, 2"):
            assert part in text
    rows = [line for line in as_markdown([table]).splitlines() if line.startswith("|")]
    separators = [n for n, row in enumerate(rows) if set(row) == set("| -")]
    assert separators
    assert all(rows[n].count("|") == rows[n - 1].count("|") == rows[n + 1].count("|") for n in separators)


def test_missing_measures_and_contenders_are_stated():
    scored = scores(leave_out=["shape_right", "smoothed_speed"])
    scored["distill/causvid"] = scored["distill/self-forcing"]
    known = read_table(ROOT / TABLES, "table1", "shapes")
    rows = [row.model_copy(update={"contender": None, "lacks": "a run"} if row.beside else {}) for row in known.rows]
    table = beside("table1", known._replace(rows=rows, unmeasured=["Rating"]), scored, [])
    assert table.unmeasured == ["Semantic", "Dynamic", "Rating"]  # the last has no metric here
    assert [one.claim.metric for one in table.claims] == ["saturation_drift", "good"]
    for text in (as_markdown([table]), as_html([table])):
        assert "Not measured here: Semantic, Dynamic, Rating." in text
        assert "Causal Forcing, which needs a run." in text
        assert "0.615" in text  # the paper's figure is shown all the same
    place = next(number for number, line in enumerate(table.lines) if line.lacks)
    rows = [one for one in csv.DictReader(io.StringIO(figures_csv([table]))) if one["row"] == table.lines[place].name]
    assert [{name: one[name] for name in ("ours", "low", "high", "seeds", "rank", "paper_rank")} for one in rows] == (
        len(table.columns) * [dict.fromkeys(("ours", "low", "high", "seeds", "rank", "paper_rank"), "")]
    )
    papers = {one["stands_for"]: float(one["paper"]) for one in rows}
    assert papers.items() <= known.rows[place].paper.items()
    missing = table.lines[2].figures[0]
    assert (missing.ours, missing.our_rank, missing.paper_rank) == (None, None, None)
    trained = ["hiar-causal-fkl", "hiar-fkl-2", "hiar-fkl-4", "hiar-no-fkl"]
    others = scores() | {f"distill/{name}": scores()["distill/hiar"] for name in trained}
    with pytest.raises(UserError, match="contender 'walked/self-forcing/hiar': has no scores"):
        beside("table3", read_table(ROOT / TABLES, "table3", "shapes"), others, [])


def test_one_training_seed_has_the_interval_of_its_videos_and_equal_figures_one_rank():
    alone = scores(seeds=1)
    alone["distill/hiar"] = alone["distill/self-forcing"]
    table = beside("table2", TABLE2, alone, [])
    quality, *_, drift = zip(*(line.figures for line in table.lines), strict=True)
    assert sorted(figure.our_rank for figure in quality) == [1, 2, 2]
    assert sorted(figure.our_rank for figure in drift) == [1, 2, 2]
    for figure in quality:
        assert (figure.ours.training, figure.interval.n) == (None, 3)
    for one in csv.DictReader(io.StringIO(figures_csv([table]))):
        assert float(one["low"]) < float(one["ours"]) < float(one["high"])
    for one in csv.DictReader(io.StringIO(claims_csv([table]))):
        assert (one["low"], one["high"], one["seeds"], one["verdict"]) == ("", "", "1", "undecided")


def test_on_wan_the_metrics_are_the_papers():
    names = {"good": "vbench_quality", "border_jump": "vbench_motion_smoothness", "saturation_drift": "drift"}
    scored = {
        name: {
            video: {names[metric]: value for metric, value in metrics.items() if metric in names}
            for video, metrics in videos.items()
        }
        for name, videos in scores().items()
    }
    table = beside("wan2.1-1.3b+table2", read_table(ROOT / TABLES, "table2", "wan"), scored, [])
    assert [(one.metric, one.stands_for, one.better) for one in table.columns] == [
        ("vbench_quality", "Quality", "higher"),
        ("vbench_motion_smoothness", "Smoothness", "higher"),
        ("drift", "Drift", "lower"),
    ]
    assert table.unmeasured == ["Semantic"]
    # The same numbers as above, but here larger is smoother: what held for jumps fails.
    assert [one.verdict for one in table.claims] == ["holds", "holds", "fails", "fails", "fails"]


def test_a_figure_of_all_videos_together_counts_once_per_seed():
    scored = scores()
    rows = [
        {
            "stage": "distill",
            "variant": name.removeprefix("distill/"),
            "seed": seed,
            "metrics": {"good": {"mean": 9.0}, "vbench_semantic": {"mean": 0.7 + 0.1 * place + 0.001 * place * seed}},
        }
        for place, name in enumerate(MEANS)
        for seed in range(3)
    ]
    add_wholes(scored, rows)
    table = beside("x", read_table(ROOT / TABLES, "table2", "wan"), scored, [])
    assert [one.stands_for for one in table.columns] == ["Semantic"]
    (figure,) = table.lines[1].figures
    assert figure.ours.seeds == {0: pytest.approx(0.8), 1: pytest.approx(0.801), 2: pytest.approx(0.802)}
    assert (figure.ours.videos, figure.interval.n) == (None, 3)
    assert (figure.our_rank, figure.paper_rank) == (2, 1)
    good = beside("x", TABLE2, scored, []).lines[1].figures[0]
    assert good.ours.mean == pytest.approx(0.7001)  # of its videos, as before


def test_text_is_escaped():
    odd = TABLE2._replace(title="<script>alert(1)</script>")
    assert "<script>alert" not in as_html([beside("table2", odd, scores(), [])])
