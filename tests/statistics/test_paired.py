import json

import numpy as np
import pytest

from hiar.errors import UserError
from hiar.statistics.paired import add_wholes, differences, estimate, read_scores, values_of


def row(variant, seed, video, value, **changes):
    walk = {"stage": "distill", "variant": variant, "order": "step_first", "context": "output"}
    return walk | {"seed": seed, "video": video, "metrics": {"speed": value}} | changes


def compared(scores, one="distill/hiar", other="distill/other"):
    return estimate(differences(scores, one, other, "speed"))


def write_scores(tmp_path, rows):
    path = tmp_path / "videos.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def two_contenders(seeds=(0, 1), videos=8):
    """Rows of two contenders; videos differ by far more than the contenders do."""
    random, rows = np.random.default_rng(0), []
    for seed in seeds:
        for video in range(videos):
            speed = 10 * random.random()
            faster = speed + 1 + seed + 0.1 * random.random()
            rows += [row("hiar", seed, video, faster), row("other", seed, video, speed)]
    return rows


def test_differences_are_taken_video_by_video_whatever_the_order_of_rows(tmp_path):
    rows = two_contenders()
    scores = read_scores(write_scores(tmp_path, rows))
    found = compared(scores)
    assert found.seeds == {0: pytest.approx(1.05, abs=0.05), 1: pytest.approx(2.05, abs=0.05)}
    assert found.mean == pytest.approx(np.mean(list(found.seeds.values())))
    assert found.videos.n == 16
    assert found.videos.half < 0.05
    assert found.training.n == 2
    assert found.training.half > 5  # two seeds with a difference of 1: t = 12.7 times a standard error of 0.5
    turned = [one for one in rows if one["variant"] == "hiar"] + [one for one in rows[::-1] if one["variant"] != "hiar"]
    shuffled = read_scores(write_scores(tmp_path, turned))
    assert compared(shuffled).videos == found.videos
    alone = estimate(values_of(scores, "distill/hiar", "speed")), estimate(values_of(scores, "distill/other", "speed"))
    assert alone[0].mean - alone[1].mean == pytest.approx(found.mean)
    assert min(one.videos.half for one in alone) > 1
    for of in (scores, shuffled):
        speeds = {seed: list(values) for seed, values in values_of(of, "distill/other", "speed").items()}
        other_rows = [one for one in rows if one["variant"] == "other"]
        assert speeds == {
            seed: [one["metrics"]["speed"] for one in other_rows if one["seed"] == seed] for seed in (0, 1)
        }
    back = compared(scores, "distill/other", "distill/hiar")
    assert back.videos.low == pytest.approx(-found.videos.high)


def test_seeds_weigh_alike_however_many_videos_they_have():
    assert estimate({0: np.array([1.0, 1.0, 1.0, 1.0]), 1: np.array([3.0, 3.0]), 2: np.array([8.0])}).mean == 4


def test_one_training_seed_has_no_interval_over_trainings(tmp_path):
    found = compared(read_scores(write_scores(tmp_path, two_contenders(seeds=[3]))))
    assert found.training is None
    assert found.videos is not None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:-1], "video 7 of seed 1 is only in the first (1 such); sample both with the same"),
        (
            lambda rows: [*rows[:-2], rows[-1]],
            "distill/other, distill/hiar: cannot be paired, video 7 of seed 1 is only",
        ),
        (lambda rows: [one for one in rows if one["variant"] != "other"], "contender 'distill/other': has no scores;"),
        (lambda rows: [one | {"metrics": {"drift": 1.0}} for one in rows], "was not scored for speed; known: drift"),
        (lambda rows: [one | {"seed": one["seed"] + (one["variant"] == "other")} for one in rows], "cannot be paired"),
    ],
)
def test_what_cannot_be_paired_is_refused(tmp_path, spoil, message):
    scores = read_scores(write_scores(tmp_path, spoil(two_contenders())))
    with pytest.raises(UserError) as caught:
        compared(scores)
    assert message in str(caught.value)


def test_videos_without_the_metric_are_left_out(tmp_path):
    """VBench scores a dimension on some prompts only; they have to be the same for both contenders."""
    rows = two_contenders()
    for one in rows:
        if one["video"] % 2:
            del one["metrics"]["speed"]
        one["metrics"]["other"] = 0.0
    scores = read_scores(write_scores(tmp_path, rows))
    assert {seed: len(values) for seed, values in values_of(scores, "distill/hiar", "speed").items()} == {0: 4, 1: 4}
    found = compared(scores)
    even = [one for one in two_contenders() if one["video"] % 2 == 0]
    assert found == compared(read_scores(write_scores(tmp_path, even)))
    del rows[0]["metrics"]["speed"]
    with pytest.raises(
        UserError, match=r"^distill/other, distill/hiar: cannot be paired, video 0 of seed 0 is only in"
    ):
        compared(read_scores(write_scores(tmp_path, rows)))
    for one in rows:
        if one["seed"]:
            one["metrics"].pop("speed", None)
    with pytest.raises(UserError, match="was not scored for speed; known: other"):
        compared(read_scores(write_scores(tmp_path, rows)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"stage": "distill"', "line 2: is not a row of scores (JSONDecodeError"),
        ("[1]", "line 2: is not a row of scores (TypeError"),
        (json.dumps(row("hiar", 0, 0, "fast")), "line 2: is not a row of scores (ValueError"),
        (json.dumps(row("hiar", 0, 0, 1.0) | {"metrics": 3}), "line 2: is not a row of scores (AttributeError"),
        (json.dumps(row("other", 0, 0, 2.0)), "line 2: video 0 of distill/other, seed 0, appears twice"),
        (json.dumps(row("other", 0, 0, 1.0)), "line 2: video 0 of distill/other, seed 0, appears twice"),
    ],
)
def test_invalid_rows_are_refused_with_their_line(tmp_path, text, message):
    path = write_scores(tmp_path, [row("other", 0, 0, 1.0)])
    path.write_text(path.read_text() + text + "\n")
    with pytest.raises(UserError) as caught:
        read_scores(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_metrics_without_values_per_video_are_added_per_seed(tmp_path):
    scores = read_scores(write_scores(tmp_path, [row("hiar", seed, 0, 1.0) for seed in (0, 1)]))
    scores["distill/hiar"][0, 0]["semantic"] = 0.5  # only this seed has values by video
    summary = {"stage": "distill", "variant": "hiar", "metrics": {"speed": {"mean": 2.0}, "semantic": {"mean": 0.75}}}
    add_wholes(scores, [summary | {"seed": seed} for seed in (0, 1)])
    assert {seed: list(found) for seed, found in values_of(scores, "distill/hiar", "semantic").items()} == {
        0: [0.5],
        1: [0.75],
    }
    assert {seed: list(found) for seed, found in values_of(scores, "distill/hiar", "speed").items()} == {
        0: [1.0],
        1: [1.0],
    }


def test_a_missing_or_undecodable_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"videos\.jsonl: cannot be read; run `hiar stage score` first"):
        read_scores(tmp_path / "videos.jsonl")
    (tmp_path / "videos.jsonl").write_bytes(json.dumps(row("hiar", 0, 0, 1.0)).encode() + b"\xff\n")
    with pytest.raises(UserError, match=r"videos\.jsonl: cannot be read; run `hiar stage score` first"):
        read_scores(tmp_path / "videos.jsonl")
