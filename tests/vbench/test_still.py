"""VBench's static filter: temporal_flickering uses a prompt's first five videos in which little moves."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from vbench_toys import SUITE, build_networks, film, lay_weights, requests_of

from hiar.errors import RunFailed, UserError
from hiar.vbench.dimensions import FLICKERING, STATIC_FILTER
from hiar.vbench.runner import score_folder

SIGN, BENCH = (one["prompt_en"] for one in SUITE[:2])


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return build_networks(tmp_path_factory.mktemp("networks") / "venv")


@pytest.fixture
def weights(tmp_path):
    return lay_weights(tmp_path / "weights", FLICKERING, STATIC_FILTER)


@pytest.fixture
def score(environment, weights, tmp_path):
    def run(**options):
        where = {"environment": environment, "weights": weights}
        return score_folder(tmp_path / "videos", [FLICKERING], tmp_path / "out", static_filter=True, **where | options)

    return run


def shot(folder, prompt, sample, *, still):
    """A video whose file has an even number of bytes exactly if it is to count as still."""
    path = film(folder / f"{prompt}-{sample}.mp4", 4, sample)
    with path.open("ab") as file:
        file.write(b"\0" * ((path.stat().st_size % 2 == 0) != still))
    return path.name


def result(tmp_path):
    return json.loads((tmp_path / "out" / f"{FLICKERING}.json").read_text())


def test_the_first_five_that_are_still_are_scored_and_no_more_are_looked_at(score, weights, tmp_path, capsys):
    videos = tmp_path / "videos"
    moving = {1, 12, 2, 4}
    for sample in range(25):
        shot(videos, SIGN, sample, still=sample not in moving)
    few = [shot(videos, BENCH, sample, still=sample == 3) for sample in range(6)]
    scores = score()
    order = sorted(range(25), key=str)  # as VBench sorts names: 0, 1, 10, 11, ...
    still = [sample for sample in order if sample not in moving][:5]
    expected = {f"{SIGN}-{sample}.mp4" for sample in still} | {few[3]}
    found = result(tmp_path)
    assert found["by_video"].keys() == expected
    assert (found["videos"], found["of"], found["static_filter"]) == (6, 10, True)
    assert "raft_model/models/raft-things.pth" in found["weights"]
    calls = requests_of(weights)
    assert {Path(one["video"]).name for one in calls if one["dimension"] == FLICKERING} == expected
    seen = [Path(one["video"]).name for one in calls if one["dimension"] != FLICKERING]
    assert sorted(seen) == sorted([f"{SIGN}-{sample}.mp4" for sample in order[: order.index(still[-1]) + 1]] + few)
    stderr = capsys.readouterr().err
    assert f"1 of 2 prompts have fewer than 5 still videos, such as '{BENCH}'" in stderr
    assert score().values == scores.values
    assert requests_of(weights) == []  # neither filter nor scoring is repeated


def test_videos_of_captions_are_taken_in_the_order_that_vbenchs_names_would_have(score, weights, tmp_path):
    for sample in range(12):
        path = tmp_path / "videos" / shot(tmp_path / "videos", SIGN, sample, still=True)
        path.rename(path.with_name(f"{sample:04d}.mp4"))
    (tmp_path / "videos" / "captions.txt").write_text(f"{SIGN}\n" * 12)
    score()
    assert {*result(tmp_path)["by_video"]} == {f"{sample:04d}.mp4" for sample in (0, 1, 10, 11, 2)}


def test_each_clip_of_a_long_video_is_filtered(score, weights, tmp_path):
    film(tmp_path / "videos" / f"{SIGN}-0.mp4", 40, 0)
    with suppress(RunFailed):  # a clip's number of bytes cannot be chosen
        score(protocol="vbench-long")
    clips = [one for one in requests_of(weights) if one["dimension"] != FLICKERING]
    assert len(clips) == 5


def test_the_filter_refuses_other_prompts_and_missing_weights(score, environment, weights, tmp_path):
    film(tmp_path / "videos" / "0000.mp4", 4, 0)
    (tmp_path / "videos" / "captions.txt").write_text("a bird\n")
    with pytest.raises(UserError, match=r"^--static-filter: is for temporal_flickering of VBench's own prompts"):
        score()
    (tmp_path / "videos" / "captions.txt").write_text(f"{SIGN}\n")
    (weights / "raft_model" / "models" / "raft-things.pth").unlink()
    with pytest.raises(UserError, match=rf"^{STATIC_FILTER}: .*raft-things.pth: is missing"):
        score()
