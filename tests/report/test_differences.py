import pytest

from hiar.report.columns import Metric
from hiar.report.differences import difference_tables
from hiar.report.series import Series, model_series

METRICS = [Metric("good", "Good", "", "higher"), Metric("speed", "Speed", "")]
STUDENTS = {f"distill/{name}": Series(name, "", "c0") for name in ("hiar", "other", "same")}


def scores(seeds):
    """``hiar`` is better by about .1 in every video of the seeds, and faster in half of them."""
    values = {"hiar": (0.1, 1.0), "other": (0.0, 0.0), "same": (0.0, 0.0)}
    return {
        f"distill/{name}": {
            (seed, video): {
                "good": 0.5 + 0.01 * video + good * (1 + 0.02 * (video + seed)),
                "speed": video + speed * (-1) ** video,
            }
            for seed in seeds
            for video in range(4)
        }
        for name, (good, speed) in values.items()
    }


def cells_of(table):
    return {row.series.name: [(cell.mean, cell.error, cell.shaded) for cell in row.cells] for row in table.rows}


def test_each_student_is_compared_with_the_reference():
    (table,) = difference_tables(METRICS, scores([0]), STUDENTS, "distill/other")
    assert table.caption == "Difference to other, 95 % interval over videos"
    assert cells_of(table) == {
        "hiar": [("+0.103", "0.004", True), ("+0.000", "1.837", False)],
        "same": [("+0.000", "0.000", False), ("+0.000", "0.000", False)],
    }
    assert [row.n for row in table.rows] == [4, 4]
    assert [(head.name, head.better) for head in table.heads] == [("Good", "higher"), ("Speed", None)]


def test_large_differences_have_as_few_decimals_as_large_figures():
    large = {
        name: {video: {"good": 1000 * metrics["good"]} for video, metrics in videos.items()}
        for name, videos in scores([0]).items()
    }
    (table,) = difference_tables(METRICS[:1], large, STUDENTS, "distill/other")
    assert cells_of(table)["hiar"] == [("+103.0", "4.1", True)]


def test_several_seeds_have_a_table_of_their_own():
    videos, seeds = difference_tables(METRICS, scores([0, 1, 2]), STUDENTS, "distill/hiar")
    others = [STUDENTS["distill/other"], STUDENTS["distill/same"]]
    assert [[row.series for row in table.rows] for table in (videos, seeds)] == [others, others]
    assert [row.n for row in videos.rows] == [12, 12]
    assert [row.n for row in seeds.rows] == [3, 3]
    assert seeds.caption.endswith("95 % interval over training seeds")
    assert cells_of(videos)["other"][0] == ("-0.105", "0.002", True)
    assert cells_of(seeds)["other"][0] == ("-0.105", "0.005", True)


def test_a_single_seed_and_video_have_no_interval():
    of = scores([0, 1])
    for name in ("distill/hiar", "distill/other"):
        of[f"{name}-once"] = {(0, 0): of[name][0, 0]}
    once = {f"distill/{name}-once": Series(f"{name}-once", "", "c0") for name in ("hiar", "other")}
    (table,) = difference_tables(METRICS[:1], of, once, "distill/other-once")
    assert cells_of(table) == {"hiar-once": [("+0.100", "", False)]}
    assert [row.n for row in table.rows] == [1]


def test_a_row_counts_the_videos_of_the_metrics_with_an_interval():
    """The first metric may be defined for a single video only, as VBench's dimensions are for few prompts."""
    few = scores([0])
    for videos in few.values():
        for (_, video), metrics in videos.items():
            if video:
                del metrics["good"]
    (table,) = difference_tables(METRICS, few, STUDENTS, "distill/other")
    assert [row.n for row in table.rows] == [4, 4]
    assert cells_of(table)["hiar"][0] == ("+0.100", "", False)


def test_ninth_students_take_the_first_ones_colour():
    names = [f"one-{number}" for number in range(10)]
    colors = [model_series("distill", name, "a walk", names).color for name in names]
    assert set(colors) == {f"c{number}" for number in range(8)}


@pytest.mark.parametrize(
    ("stage", "variant", "name", "color", "dashed"),
    [
        ("distill", "hiar", "HiAR", "c1", False),
        ("init", "self-forcing", "Self-Forcing · init", "c0", True),
        ("walked", "hiar/self-forcing", "HiAR · walked as Self-Forcing", "c0", True),
    ],
)
def test_names_and_colours(stage, variant, name, color, dashed):
    one = model_series(stage, variant, "step-first, output context", ["self-forcing", "hiar"])
    assert one == Series(name, "step-first, output context", color, dashed)
