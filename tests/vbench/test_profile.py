"""VBench as a profile of `hiar score`, with a toy of its package: beside other profiles, and alone."""

import json
import shutil

import pytest
from commands import hiar
from vbench_toys import behave, film, requests_of

FLICKERING, IMAGING = "temporal_flickering", "imaging_quality"


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three videos of three seconds, whose file sizes are the toy's values."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(3):
        film(folder / f"{number:04d}.mp4", 12, number)
    (folder / "captions.txt").write_text("a bird\na bee\na bear\n")
    return folder


@pytest.fixture
def score(films, toy, weights, tmp_path):
    shutil.copytree(films, tmp_path / "videos")
    settings = {"HIAR_VBENCH": str(toy), "VBENCH_CACHE_DIR": str(weights)}

    def run(*options, out="score.json", code=0, **others):
        return hiar("score", "videos", *options, "--out", out, folder=tmp_path, code=code, **settings | others)

    return run


def last_error(run):
    *_, line = run.stderr.splitlines()
    return line.removeprefix("error: ")


def test_vbench_beside_another_profile_is_scored_once(score, tmp_path, weights):
    options = ("--profile", "vbench", "--profile", "drift-lite", "-d", FLICKERING, "-d", IMAGING)
    score(*options)
    assert len(requests_of(weights)) == 6
    found = json.loads((tmp_path / "score.json").read_text())
    assert [*found] == ["drift-lite", "vbench"]
    assert found["drift-lite"]["videos"] == found["vbench"]["videos"] == 3
    record, metrics = found["vbench"]["record"], found["vbench"]["metrics"]
    assert (record["profile"], record["prompts"], record["dimensions"][IMAGING]["protocol"]) == (
        *("vbench", "own", "vbench"),
    )
    assert record["generated_with"] == "unknown"
    assert {*metrics} == {f"vbench_{FLICKERING}", f"vbench_{IMAGING}"}
    for name in (FLICKERING, IMAGING):
        kept = json.loads((tmp_path / "score.vbench" / f"{name}.json").read_text())
        assert metrics[f"vbench_{name}"]["mean"] == kept["value"]
        assert metrics[f"vbench_{name}"]["n"] == 3
        assert {*kept["by_video"]} == {f"{number:04d}.mp4" for number in range(3)}
    assert len(found["vbench"]["missing"]) == 14
    assert len((tmp_path / "score.videos.jsonl").read_text().splitlines()) == 3  # drift-lite's
    before = (tmp_path / "score.json").read_bytes()
    score(*options)
    assert requests_of(weights) == []
    assert (tmp_path / "score.json").read_bytes() == before


def test_vbench_alone_takes_videos_of_any_size_and_length(score, tmp_path):
    """The videos may have several sizes and lengths, and belong to no world."""
    film(tmp_path / "videos" / "0002.mp4", 20, 7)
    score("--profile", "vbench-long", "-d", FLICKERING)
    found = json.loads((tmp_path / "score.json").read_text())
    assert found["vbench-long"]["record"]["dimensions"][FLICKERING]["protocol"] == "vbench-long"
    assert not (tmp_path / "score.videos.jsonl").exists()


def test_by_default_all_dimensions_that_run_and_suit_the_videos_are_scored(score, tmp_path):
    """Without weights, the one that needs none; videos that suit none are refused."""
    (tmp_path / "none").mkdir()
    none = {"VBENCH_CACHE_DIR": str(tmp_path / "none")}
    score("--profile", "vbench", **none)
    found = json.loads((tmp_path / "score.json").read_text())["vbench"]
    assert [*found["metrics"]] == [f"vbench_{FLICKERING}"]
    (tmp_path / "videos" / "captions.txt").write_text("A person is riding a bike\n" * 3)
    assert last_error(score("--profile", "vbench", code=2, **none)) == (
        "videos: no dimension of VBench runs here and suits its videos; see `hiar vbench doctor`"
    )


def test_a_failing_dimension_keeps_the_values_of_the_others(score, tmp_path, weights):
    behave(weights, **{IMAGING: "raise"})
    error = last_error(score("--profile", "vbench", "-d", FLICKERING, "-d", IMAGING, code=1))
    assert error.startswith(f"{IMAGING}: no value; {IMAGING}: ")
    assert not (tmp_path / "score.json").exists()
    behave(weights)
    requests_of(weights)
    score("--profile", "vbench", "-d", FLICKERING, "-d", IMAGING)
    assert {one["dimension"] for one in requests_of(weights)} == {IMAGING}


def test_vbench_refuses_before_other_profiles_score(score, tmp_path, weights):
    both = ("--profile", "drift-lite", "--profile", "vbench")
    (tmp_path / "videos" / "captions.txt").write_text("a bird\na bee\n")
    assert "captions.txt" in last_error(score(*both, code=2))
    (tmp_path / "videos" / "captions.txt").write_text("a bird\na bee\na bear\n")
    assert last_error(score(*both, "-d", "color", code=2)).startswith("color: ")
    assert not [*tmp_path.glob("score*")]


@pytest.mark.parametrize(
    ("options", "out", "line"),
    [
        (
            ("--profile", "drift-lite", "-d", FLICKERING),
            "score.json",
            f"--dimension = {FLICKERING}: is VBench's; give --profile vbench or vbench-long too, or leave it out",
        ),
        (
            ("--profile", "vbench"),
            "-",
            "--profile = vbench: keeps its values beside the file of figures; give --out a file",
        ),
        (
            ("--profile", "vbench", "--profile", "drift-lite", "-d", "flickering"),
            "score.json",
            "dimension 'flickering': is not one of VBench's; did you mean 'temporal_flickering'?",
        ),
    ],
)
def test_contradictory_options_are_refused(score, tmp_path, options, out, line):
    assert last_error(score(*options, out=out, code=2)) == line
    assert not [*tmp_path.glob("score*")]
