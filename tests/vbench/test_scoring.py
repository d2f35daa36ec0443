"""Scoring by the worker process, with a toy package in place of VBench: what it returns, and what survives failures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import av
import numpy as np
import pytest
from commands import environment as shell
from commands import hiar
from vbench_toys import behave, film, lay_weights, requests_of
from waiting import wait_until

from hiar.errors import UserError
from hiar.io.reading import read_parts
from hiar.stages.vbench import figures_of
from hiar.vbench.clips import FIRST_FRAMES, clip_folder, clip_frames, clip_rate, clip_seconds, cut
from hiar.vbench.dimensions import DIMENSIONS
from hiar.vbench.leaderboard import read_results
from hiar.vbench.runner import score_folder
from hiar.vbench.side_by_side import side_by_side
from hiar.vbench.values import dimension_value, long_values
from hiar.vbench.worker import chunks

SUBJECT = "subject_consistency"
FLICKERING, SMOOTH, DEGREE, IMAGING = "temporal_flickering", "motion_smoothness", "dynamic_degree", "imaging_quality"


@pytest.fixture
def score(toy, weights, tmp_path):
    def run(folder, *dimensions, **options):
        return score_folder(folder, dimensions or None, tmp_path / "out", environment=toy, weights=weights, **options)

    return run


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three videos of one second with their own captions."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(3):
        film(folder / f"{number:04d}.mp4", 4 + number, number)
    (folder / "captions.txt").write_text("a bird\na bee\n100% of a bear/cub\n")
    return folder


@pytest.fixture
def videos(films, tmp_path):
    return shutil.copytree(films, tmp_path / "videos")


def size(path):
    return os.path.getsize(path) / 1e5


def result(tmp_path, dimension):
    return json.loads((tmp_path / "out" / f"{dimension}.json").read_text())


def test_values_of_each_video_and_their_mean(score, videos, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not theirs")
    scores = score(videos, FLICKERING, IMAGING, "human_action")
    names = [f"{number:04d}.mp4" for number in range(3)]
    each = {name: size(videos / name) for name in names}
    mean = sum(each.values()) / 3
    assert scores.values == pytest.approx({FLICKERING: mean, IMAGING: mean / 100, "human_action": mean})
    found = result(tmp_path, FLICKERING)
    assert found["by_video"] == each
    assert (found["prompts"], found["protocol"], found["videos"], found["of"]) == ("own", "vbench", 3, 3)
    calls = requests_of(weights)
    assert [one["entry"]["prompt_en"] for one in calls[:3]] == ["a bird", "a bee", "100% of a bear/cub"]
    # what VBench reads from names is kept, and nothing looks like a pattern to OpenCV
    assert {one["name"] for one in calls} == {"a bird-0.mp4", "a bee-0.mp4", "100  of a bear cub-0.mp4"}
    assert all(one["loads"] == {"map_location": "cpu", "weights_only": False} for one in calls)
    assert all(one["isolated"] for one in calls)  # its import path has nothing of our environment
    assert not any("AWS_SECRET_ACCESS_KEY" in one["variables"] for one in calls)


def test_scored_videos_are_not_scored_again(score, videos, weights, tmp_path):
    first = score(videos, FLICKERING)
    assert len(requests_of(weights)) == 3
    assert score(videos, FLICKERING) == first
    assert requests_of(weights) == []
    for number in (3, 4):  # two files with the same film and prompt
        film(videos / f"000{number}.mp4", 4, 77)
    with (videos / "captions.txt").open("a") as file:
        file.write("a beetle\na beetle\n")
    score(videos, FLICKERING)
    assert [os.path.basename(one["video"]) for one in requests_of(weights)] in (["0003.mp4"], ["0004.mp4"])
    assert len(set(list(result(tmp_path, FLICKERING)["by_video"].values())[3:])) == 1
    for number in (3, 4):
        (videos / f"000{number}.mp4").unlink()
    film(videos / "0001.mp4", 5, seed=99)
    (videos / "0000.mp4").rename(videos / "0003.mp4")  # now the last one, with another prompt
    (videos / "captions.txt").write_text("a bee\n100% of a bear/cub\na beetle\n")
    score(videos, FLICKERING)
    assert sorted(os.path.basename(one["video"]) for one in requests_of(weights)) == ["0001.mp4", "0003.mp4"]
    assert result(tmp_path, FLICKERING)["by_video"]["0001.mp4"] == size(videos / "0001.mp4")


def test_other_weights_score_anew_and_lose_nothing(score, videos, weights, tmp_path, capsys):
    from hiar.vbench.weights import approve

    score(videos, SMOOTH)
    old = (tmp_path / "out" / f"{SMOOTH}.jsonl").read_text()
    requests_of(weights)
    import torch

    torch.save({"other": 1}, weights / "amt_model" / "amt-s.pth")
    approve(weights, "amt_model/amt-s.pth")
    score(videos, SMOOTH)
    assert len(requests_of(weights)) == 3
    assert "other weights" in capsys.readouterr().err
    assert (tmp_path / "out" / f"{SMOOTH}.aside-1.jsonl").read_text() == old
    torch.save({"third": 1}, weights / "amt_model" / "amt-s.pth")
    approve(weights, "amt_model/amt-s.pth")
    new = (tmp_path / "out" / f"{SMOOTH}.jsonl").read_text()
    score(videos, SMOOTH, devices=["cuda:12"])
    assert "other device, weights; it is set aside as" in capsys.readouterr().err
    assert [(tmp_path / "out" / f"{SMOOTH}.aside-{n}.jsonl").read_text() for n in (1, 2)] == [old, new]
    assert result(tmp_path, SMOOTH)["device"] == "cuda"
    assert {(one["device"], one["gpus"]) for one in requests_of(weights)} == {("cuda", "12")}
    score(videos, SMOOTH, devices=["cuda:3"])  # another GPU of the same kind
    assert requests_of(weights) == []


def test_dimensions_are_scored_side_by_side_each_on_a_device(score, videos, weights, tmp_path):
    behave(weights, **{FLICKERING: "meet", SMOOTH: "meet"})
    scores = score(videos, FLICKERING, SMOOTH, IMAGING, devices=["cuda:0", "cuda:1"])
    assert list(scores.values) == [FLICKERING, SMOOTH, IMAGING]
    each = {name: {one["gpus"] for one in calls} for name, calls in by_dimension(requests_of(weights)).items()}
    assert each[FLICKERING] | each[SMOOTH] == {"0", "1"}
    assert [len(used) for used in each.values()] == [1, 1, 1]
    assert result(tmp_path, SMOOTH)["device"] == "cuda"


def by_dimension(calls):
    return {name: [one for one in calls if one["dimension"] == name] for name in {one["dimension"] for one in calls}}


def test_a_failing_task_ends_those_that_run_beside_it():
    begun = []

    def work(task, device, workers):
        begun.append(task)
        if task == "fails":
            wait_until(lambda: "sleeps" in begun)
            raise UserError("of its own")
        process = subprocess.Popen(["sleep", "600"])
        workers.add(process)
        ended.append(process.wait())

    ended = []
    with pytest.raises(UserError, match="of its own"):
        side_by_side(["fails", "sleeps", "late", "later"], ["cpu", "cpu"], work)
    assert begun[:2] in (["fails", "sleeps"], ["sleeps", "fails"])
    assert set(ended) == {-signal.SIGKILL}
    assert "later" not in begun  # no waiting one is started, and nothing that had begun is left running
    assert len(ended) == len(begun) - 1


def test_another_version_scores_anew(toy, videos, weights, tmp_path, capsys):
    own = shutil.copytree(toy, tmp_path / "venv", symlinks=True)
    score_folder(videos, [FLICKERING], tmp_path / "out", environment=own, weights=weights)
    requests_of(weights)
    place = next(own.glob("lib/python3*/site-packages")) / "vbench-9.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: vbench\nVersion: 9\n")
    score_folder(videos, [FLICKERING], tmp_path / "out", environment=own, weights=weights)
    assert len(requests_of(weights)) == 3
    assert "other versions" in capsys.readouterr().err
    assert result(tmp_path, FLICKERING)["versions"] == {"vbench": "9"}


def test_own_prompts_are_scored_in_all_dimensions_that_suit_them(score, videos, weights):
    """Dimensions that need the suite's annotations are left out; those that need only the prompt are not."""
    found = {name for name, one in DIMENSIONS.items() if not one.described}
    values = score(videos).values
    assert set(values) == found
    assert {"human_action", "temporal_style"} < found
    assert not found & {"scene", "appearance_style"}
    # this mean is over pairs of consecutive frames
    sizes = [os.path.getsize(videos / f"{number:04d}.mp4") for number in range(3)]
    pairs = [one // 1000 - 1 for one in sizes]
    mean = sum(one / 1e5 * count for one, count in zip(sizes, pairs, strict=True)) / sum(pairs)
    assert values["subject_consistency"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("raise", "no such luck"),
        ("shell", "nothing is downloaded while it scores"),
        ("wget", "nothing is downloaded while it scores"),
        ("connect", "nothing is downloaded while it scores"),
        ("not a number", "is nan"),
        ("left out", "ZeroDivisionError"),
    ],
)
def test_a_dimension_that_fails_leaves_the_others(score, videos, weights, tmp_path, order, message):
    behave(weights, **{SMOOTH: order})
    scores = score(videos, FLICKERING, SMOOTH, DEGREE)
    assert set(scores.values) == {FLICKERING, DEGREE}
    assert message in scores.failed[SMOOTH]
    assert "a line that VBench prints" in (tmp_path / "out" / "logs" / f"{SMOOTH}.log").read_text()
    assert not (tmp_path / "out" / f"{SMOOTH}.json").exists()
    requests_of(weights)
    behave(weights)
    assert set(score(videos, FLICKERING, SMOOTH, DEGREE).values) == {FLICKERING, SMOOTH, DEGREE}
    assert {one["dimension"] for one in requests_of(weights)} == {SMOOTH}


def test_a_killed_dimension_goes_on_from_its_last_chunk(score, films, weights, tmp_path):
    many = tmp_path / "many"
    many.mkdir()
    for number in range(40):
        shutil.copy(films / "0000.mp4", many / f"{number:04d}.mp4")
    (many / "captions.txt").write_text("".join(f"bird {number}\n" for number in range(40)))
    behave(weights, **{FLICKERING: "kill"})
    scores = score(many, FLICKERING, DEGREE)
    assert "SIGKILL (out of memory?)" in scores.failed[FLICKERING]
    assert DEGREE in scores.values
    with (tmp_path / "out" / f"{FLICKERING}.jsonl").open("a") as file:
        file.write('{"key": "cut off he')  # as left by a kill
    behave(weights)
    requests_of(weights)
    assert score(many, FLICKERING).values[FLICKERING] == pytest.approx(size(films / "0000.mp4"))
    assert [one["entry"]["prompt_en"] for one in requests_of(weights)] == [f"bird {number}" for number in range(32, 40)]
    assert score(many, FLICKERING).failed == {}
    assert requests_of(weights) == []


def test_the_worker_ends_with_its_parent(toy, weights, videos, tmp_path):
    behave(weights, **{FLICKERING: "hang"})
    command = [sys.executable, "-m", "hiar", "vbench", "score", videos, "--out", tmp_path / "out", "-d", FLICKERING]
    parent = subprocess.Popen(
        [*map(str, command), "--environment", str(toy), "--weights", str(weights)],
        env=shell(),
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: (weights / "asked.jsonl").exists() and (weights / "asked.jsonl").read_text().endswith("\n"))
        [call] = requests_of(weights)
        with pytest.raises(UserError, match="another process is scoring"):
            score_folder(videos, [FLICKERING], tmp_path / "out", environment=toy, weights=weights)
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not is_alive(call["pid"]))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"


def test_videos_named_by_the_suite_go_to_the_dimensions_of_their_prompts(score, weights, tmp_path, capsys):
    folder = tmp_path / "suite"
    for number, name in enumerate(["a bench-0", "a bench-1", "a bench-7", "the bund, oil painting-0"]):
        film(folder / f"{name}.mp4", 4, number)
    scores = score(folder)
    assert set(scores.values) == {FLICKERING, IMAGING, "appearance_style", "overall_consistency"}
    calls = requests_of(weights)
    assert [one["name"] for one in calls if one["dimension"] == IMAGING] == ["a bench-0.mp4"] * 2 + [
        "the bund, oil painting-0.mp4"
    ]
    [style] = [one for one in calls if one["dimension"] == "appearance_style"]
    assert style["entry"]["auxiliary_info"] == {"appearance_style": {"appearance_style": "oil painting"}}
    found = result(tmp_path, IMAGING)
    assert (found["prompts"], found["videos"], found["of"]) == ("suite", 3, 10)
    assert "not comparable with the leaderboard" in capsys.readouterr().err
    with pytest.raises(UserError, match="human_action: none of the videos is of its prompts"):
        score(folder, "human_action")


def test_prompts_longer_than_a_file_name_are_scored(score, videos, weights, tmp_path):
    prompts = tmp_path / "prompts.json"
    long = "a very long bird " * 40
    prompts.write_text(json.dumps({"0000.mp4": long, "0001.mp4": long + "!", "0002.mp4": "a bee", "more.mp4": "x"}))
    score(videos, FLICKERING, prompts=prompts)
    assert [one["entry"]["prompt_en"] for one in requests_of(weights)] == [long.strip(), long + "!", "a bee"]


@pytest.mark.parametrize(
    ("frames", "fps", "wanted"),
    [
        (7, 4, [range(7)]),
        (8, 4, [range(8)]),
        (19, 4, [range(8), range(8, 16), range(11, 19)]),
        (16, 4.9, [range(8), range(8, 16)]),
        (9, 4, [range(8), range(1, 9)]),
    ],
)
def test_clips_follow_one_another_and_the_last_reaches_back(frames, fps, wanted):
    assert clip_frames(frames, fps, 2) == wanted


def test_clips_are_as_long_as_the_prompts_longest_dimension_asks():
    assert clip_seconds(["aesthetic_quality", "overall_consistency"]) == 10
    assert clip_seconds([FLICKERING]) == clip_seconds([]) == 2


def nearest_of(frames, whole):
    """The number of the most similar frame of ``whole`` for each of ``frames``."""
    known = whole.numpy().astype(int)
    return [int(abs(frame.astype(int) - known).mean(axis=(1, 2, 3)).argmin()) for frame in frames]


def test_clips_hold_the_frames_of_their_part(tmp_path):
    whole = next(read_parts(film(tmp_path / "film.mp4", 19, 0)))
    paths = cut(tmp_path / "film.mp4", clip_frames(19, 4, 2), 4, tmp_path / "clips")
    for path, part in zip(paths, clip_frames(19, 4, 2), strict=True):
        with av.open(path) as container:
            assert container.streams.video[0].average_rate == 4
            frames = [frame.to_ndarray(format="rgb24")[::6, ::6] for frame in container.decode(video=0)]
        assert nearest_of(frames, whole) == [*part]
    with av.open(tmp_path / "clips" / FIRST_FRAMES) as container:
        firsts = [frame.to_ndarray(format="rgb24")[::6, ::6] for frame in container.decode(video=0)]
    assert nearest_of(firsts, whole) == [part.start for part in clip_frames(19, 4, 2)]


def test_clips_are_written_completely_or_not_at_all(tmp_path):
    video = film(tmp_path / "film.mp4", 19, 0)
    place = tmp_path / "clips" / "film"
    with pytest.raises(UserError, match=r"film\.mp4: is truncated \(19 of 27 frames\)"):
        cut(video, clip_frames(27, 4, 2), 4, place)
    assert not place.exists()
    left = place.with_name(f"film.{os.getpid()}.partial")  # left by a killed process with that id
    left.mkdir(exist_ok=True)
    (left / "009.mp4").write_text("half")
    paths = cut(video, clip_frames(19, 4, 2), 4, place)
    assert sorted(place.iterdir()) == [*paths, place / FIRST_FRAMES]
    assert list(place.parent.iterdir()) == [place]
    for width, height in ((31, 32), (32, 31)):
        with av.open(tmp_path / "odd.mp4", "w") as container:
            stream = container.add_stream("libx264", 4, pix_fmt="yuv444p", width=width, height=height)
            for _ in range(8):
                frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        with pytest.raises(UserError, match=rf"odd\.mp4: is {width}x{height} pixels: h264 clips have even sizes only"):
            cut(tmp_path / "odd.mp4", [range(8)], 4, tmp_path / "clips" / "odd")


def test_slow_videos_have_a_frame_a_second_at_least():
    assert [clip_rate(fps) for fps in (0.4, 1.9, 23.976)] == [1, 1, 23]


def test_long_videos_are_means_of_their_own_clips(score, weights, tmp_path):
    folder = tmp_path / "long"
    for number, frames in enumerate([20, 27, 41]):  # 5 s and more, at four frames per second
        film(folder / f"a_film_{number}.mp4", frames, number)
    (folder / "captions.txt").write_text("a bird\na bee\na bird\n")
    scores = score(folder, FLICKERING)
    clips = {}
    for one in requests_of(weights):
        clips.setdefault(os.path.dirname(one["video"]), []).append(one["value"])
    assert [len(values) for values in clips.values()] == [3, 4, 6]
    means = [sum(values) / len(values) for values in clips.values()]
    found = result(tmp_path, FLICKERING)
    assert found["protocol"] == "vbench-long"
    assert list(found["by_video"].values()) == pytest.approx(means)
    assert scores.values[FLICKERING] == pytest.approx(sum(means) / 3)
    assert sorted(path.name for path in (tmp_path / "out").glob(".clips*")) == [".clips.lock"]
    # as many clips as before, but of another film
    film(folder / "a_film_1.mp4", 27, seed=99)
    score(folder, FLICKERING)
    calls = requests_of(weights)
    assert len(calls) == 4
    anew = result(tmp_path, FLICKERING)["by_video"]
    assert anew["a_film_1.mp4"] == pytest.approx(sum(one["value"] for one in calls) / 4) != means[1]
    assert (anew["a_film_0.mp4"], anew["a_film_2.mp4"]) == pytest.approx((means[0], means[2]))
    (folder / "captions.txt").write_text("a bird\na bee\na bear\n")  # other prompts are scored anew
    score(folder, FLICKERING)
    assert {one["entry"]["prompt_en"] for one in requests_of(weights)} == {"a bear"}


def test_consistency_within_clips_alone_is_an_option_and_recorded(score, videos, tmp_path):
    """VBench-Long's published values also have a part across clips."""
    with pytest.raises(UserError, match=r"^subject_consistency_across_clips: .*`hiar vbench score --within-clips`$"):
        score(videos, "subject_consistency", FLICKERING, protocol="vbench-long")
    score(videos, "subject_consistency", FLICKERING, protocol="vbench-long", within_clips=True)
    results = {name: result(tmp_path, name) for name in ("subject_consistency", FLICKERING)}
    facts = figures_of(results, [path.name for path in sorted(videos.glob("*.mp4"))]).facts
    assert {name: one.get("consistency") for name, one in facts.items()} == {
        "subject_consistency": "within clips",
        FLICKERING: None,
    }
    score(videos, "subject_consistency", protocol="vbench")
    assert "consistency" not in result(tmp_path, "subject_consistency")


def test_clips_of_a_suites_prompt_are_as_long_as_any_of_its_dimensions_asks(score, weights, tmp_path):
    """With the user's own prompts two seconds, even if one of them is in the suite."""
    folder = tmp_path / "suite"
    film(folder / "the bund, oil painting-0.mp4", 44, 0)  # eleven seconds
    score(folder, IMAGING)
    assert len(requests_of(weights)) == 2
    film(folder / "a bird-0.mp4", 44, 1)
    score(folder, IMAGING, prompts=captions(tmp_path, "a bird", "the bund, oil painting"))
    assert len(requests_of(weights)) == 2 * 6


def captions(folder, *lines):
    (folder / "captions.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder / "captions.txt"


def test_clips_of_another_film_are_not_reused(score, weights, tmp_path):
    """If old clips are still there, as after a kill."""
    folder = tmp_path / "long"
    film(folder / "film.mp4", 20, 0)
    (folder / "captions.txt").write_text("a bird\n")
    with clip_folder(tmp_path / "out"):
        first = score(folder, FLICKERING).values
        film(folder / "film.mp4", 20, 99)
        again = score(folder, FLICKERING).values
    scored = [one["value"] for one in requests_of(weights)]
    assert (len(scored), first) == (6, {FLICKERING: pytest.approx(sum(scored[:3]) / 3)})
    assert again == {FLICKERING: pytest.approx(sum(scored[3:]) / 3)}
    assert scored[:3] != scored[3:]


def test_a_dimension_without_a_value_for_any_video_fails(score, videos, tmp_path):
    """Such as `color`, if VBench finds its object in no video; videos are not scored again."""
    score(videos, FLICKERING)
    kept = tmp_path / "out" / f"{FLICKERING}.jsonl"
    head, *lines = map(json.loads, kept.read_text().splitlines())
    for fields, failed in ((lines[0]["fields"], None), (None, "VBench gives a value for none of the 3 videos")):
        rows = [head, lines[0] | {"fields": fields}, *(line | {"fields": None} for line in lines[1:])]
        kept.write_text("".join(f"{json.dumps(line, sort_keys=True)}\n" for line in rows))
        scores = score(videos, FLICKERING)
        assert (failed or "") in scores.failed.get(FLICKERING, "")
        assert (scores.failed == {}) == (failed is None)
        assert scores.values == ({} if failed else {FLICKERING: fields["video_results"]})


@pytest.mark.parametrize("line", ["not JSON", "[1]", '{"key": "of no video"}'])
def test_a_file_of_anything_else_is_neither_read_nor_changed(score, videos, weights, tmp_path, line):
    score(videos, FLICKERING)
    kept = tmp_path / "out" / f"{FLICKERING}.jsonl"
    head, *_ = kept.read_text().splitlines()
    kept.write_text(f"{head}\n{line}\n")
    requests_of(weights)
    with pytest.raises(
        UserError, match=rf"{FLICKERING}\.jsonl: holds lines that are not records; delete it, or choose"
    ):
        score(videos, FLICKERING)
    assert kept.read_text() == f"{head}\n{line}\n"
    assert requests_of(weights) == []


def test_a_value_of_other_videos_is_removed(score, videos, weights, tmp_path):
    score(videos, SMOOTH)
    film(videos / "0001.mp4", 5, seed=99)
    behave(weights, **{SMOOTH: "raise"})
    score(videos, SMOOTH)
    assert not (tmp_path / "out" / f"{SMOOTH}.json").exists()


def test_clips_are_removed_by_their_last_user(tmp_path):
    with clip_folder(tmp_path) as clips:
        with clip_folder(tmp_path):
            clips.mkdir()
        assert clips.is_dir()
    assert not clips.exists()


def test_which_prompts_generated_the_videos_is_recorded(score, videos, weights, tmp_path, capsys):
    cases = [("short", {"generated_with": "short"}), ("extended", {"generated_with": "extended"}), ("unknown", [])]
    for expected, manifest in cases:
        (videos / "manifest.json").write_text(json.dumps(manifest))
        score(videos, FLICKERING)
        assert result(tmp_path, FLICKERING)["generated_with"] == expected
    (videos / "captions.txt").write_text("a bench\na bird\na bench\n")
    score(videos, FLICKERING)
    assert "'a bird' is not one of the suite's prompts (1 of 3 are not): each dimension scores all videos" in (
        capsys.readouterr().err
    )
    assert result(tmp_path, FLICKERING)["videos"] == 3


def test_short_and_long_videos_in_one_folder_need_a_protocol(score, videos, weights):
    film(videos / "0002.mp4", 20, 5)
    with pytest.raises(UserError, match=r"0002.mp4: is 5.0 s long, .*choose --protocol"):
        score(videos, FLICKERING)
    score(videos, FLICKERING, protocol="vbench")
    assert len(requests_of(weights)) == 3


def test_means_over_frames_and_over_videos():
    frames = [{"video_results": 1.0, "pairs": 1.0}, {"video_results": 0.0, "pairs": 3.0}]
    assert dimension_value("subject_consistency", frames) == 0.25
    assert dimension_value("background_consistency", [
        {"video_results": 1.0, "video_sim": 1.0, "cnt_per_video": 1.0},
        {"video_results": 0.0, "video_sim": 0.0, "cnt_per_video": 3.0},
    ]) == 0.25  # fmt: skip
    for name in ("object_class", "multiple_objects", "scene"):
        found = [{"success_frame_count": 16.0, "frame_count": 16.0}, {"success_frame_count": 2.0, "frame_count": 20.0}]
        assert dimension_value(name, found) == 0.5
    for name in ("appearance_style", "spatial_relationship"):
        assert dimension_value(name, [{"frame_results": [1.0]}, {"frame_results": [0.0] * 3}]) == 0.25
    assert dimension_value("color", [{"video_results": 1.0}, {"video_results": 0.0}]) == 0.5
    # Summed one after the other, as VBench does, each 1 is lost in rounding beside the much larger value.
    assert dimension_value("color", [{"video_results": value} for value in (1e16, *[1.0] * 8, -1e16)]) == 0
    assert dimension_value(IMAGING, [{"video_results": 60.0}, {"video_results": 80.0}]) == 0.7
    assert long_values(IMAGING, {"a": [{"video_results": 60.0}] * 3, "b": [{"video_results": 80.0}], "c": []}) == (
        0.7,
        {"a": 60.0, "b": 80.0},
    )


def test_chunks_keep_the_order_and_split_long_entries():
    entries = [{"prompt_en": "a", "video_list": [1, 2, 3]}, {"prompt_en": "b", "video_list": [4, 5]}]
    found = list(chunks(entries, 2))
    assert [[one["video_list"] for one in chunk] for chunk in found] == [[[1, 2]], [[3], [4]], [[5]]]
    assert [one["prompt_en"] for chunk in found for one in chunk] == ["a", "a", "b", "b"]
    assert list(chunks([], 2)) == []


@pytest.fixture(scope="module")
def command(toy, tmp_path_factory):
    """Runs `hiar vbench` as users do, with the toy environment and no weights."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "weights").mkdir()

    def run(name, *arguments, code=0):
        return hiar("vbench", name, *arguments, "--environment", toy, folder=folder, code=code,
                    VBENCH_CACHE_DIR=str(folder / "weights"))  # fmt: skip

    return run


def last_error(run):
    error = [one for one in run.stderr.splitlines() if one.startswith("error: ")][-1]
    assert "Traceback" not in run.stderr
    return error


def test_the_vbench_commands(command, films, tmp_path):
    assert "1 of 20 run here" in command("doctor").stdout
    assert command("prompts", "human_action").stdout.splitlines() == ["A person is riding a bike"] * 5
    assert command("prompts", "--names", IMAGING).stdout.splitlines()[5:] == [
        f"the bund, oil painting-{sample}.mp4" for sample in range(5)
    ]
    assert "models.zip" in command("fetch", "--dry-run", "raft_model/models/raft-things.pth").stdout
    weights = lay_weights(tmp_path / "weights", SMOOTH, IMAGING)
    assert "3 of 20 run here" in command("doctor", "--weights", weights).stdout
    amt = weights / "amt_model" / "amt-s.pth"
    asked_for = ("fetch", "amt_model/amt-s.pth", "--weights", weights)
    assert command(*asked_for).stdout.startswith(f"{amt}: is there, SHA-256 ")
    assert command(*asked_for, "--dry-run").stdout == ""
    assert command(*asked_for, "--dry-run", "--replace").stdout.startswith(f"{amt} from https://")
    behave(weights, **{SMOOTH: "raise"})
    run = command("score", films, "--out", tmp_path / "out", "--extended", "--weights", weights, code=1)
    assert [text.split()[0] for text in run.stdout.splitlines()[:4]] == [FLICKERING, IMAGING, "quality", "semantic"]
    assert "total                   open" in run.stdout
    assert f"{SMOOTH}: no value" in last_error(run)
    assert "dynamic_degree: cannot run here and is left out" in run.stderr
    assert result(tmp_path, FLICKERING)["generated_with"] == "extended"
    (weights / "behave.json").unlink()
    command("score", films, "--out", tmp_path / "out", "--short", "--weights", weights, "--device", "cuda:1")
    found = result(tmp_path, FLICKERING)
    assert (found["generated_with"], found["device"]) == ("short", "cuda")
    filtered = ("score", films, "--out", tmp_path / "out", "--static-filter", "--weights", weights)
    assert last_error(command(*filtered, code=2)).startswith("error: --static-filter: is for ")
    lay_weights(weights, SUBJECT)
    alone = ("-d", SUBJECT, "--protocol", "vbench-long", "--within-clips", "--weights", weights)
    command("score", films, "--out", tmp_path / "long", *alone)
    kept = json.loads((tmp_path / "long" / f"{SUBJECT}.json").read_text())
    assert kept["consistency"] == "within clips"


def test_totals_and_the_leaderboards_archive(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    facts = {"protocol": "vbench", "prompts": "suite", "generated_with": "short", "videos": 1, "of": 5}
    for name, value in {"scene": 0.4, FLICKERING: 0.9}.items():
        found = facts | {"value": value, "by_video": {"a-0.mp4": value}}
        (out / f"{name}.json").write_text(json.dumps(found))
    assert "total                   open" in hiar("vbench", "totals", out, folder=tmp_path).stdout
    archive = tmp_path / "hiar.zip"
    strict = hiar("vbench", "totals", out, "--strict-leaderboard", archive, folder=tmp_path).stdout
    assert "missing, counted as 0: subject_consistency" in strict
    with zipfile.ZipFile(archive) as opened:
        read = {name: json.loads(opened.read(name)) for name in opened.namelist()}
        assert {one.date_time[0] for one in opened.infolist()} == {1980}  # no dates: the bytes never change
    assert list(read_results(out)) == [FLICKERING, "scene"]  # VBench's order
    assert read == {
        f"{name}_eval_results.json": {name: [value, [{"video_path": "a-0.mp4", "video_results": value}]]}
        for name, value in {FLICKERING: 0.9, "scene": 0.4}.items()
    }
    for other in ({"protocol": "vbench-long"}, {"generated_with": "extended"}, {"prompts": "own"}):
        (out / "scene.json").write_text(json.dumps(facts | {"value": 0.4, "by_video": {}} | other))
        with pytest.raises(UserError, match=f"{next(iter(other))} = .* they cannot be totalled"):
            read_results(out)
    assert "cannot be totalled" in last_error(hiar("vbench", "totals", out, folder=tmp_path, code=2))
    for broken in ("{", "[]", json.dumps(facts)):
        (out / "scene.json").write_text(broken)
        with pytest.raises(UserError, match=r"scene\.json: is not a dimension's result \(.*\); score it again"):
            read_results(out)
    (out / "scene.json").write_text(json.dumps(facts | {"value": 0.4, "by_video": {}, "prompts": "own"}))
    (out / f"{FLICKERING}.json").unlink()
    assert "takes only those" in last_error(
        hiar("vbench", "totals", out, "--strict-leaderboard", tmp_path / "no.zip", folder=tmp_path, code=2)
    )
    assert not (tmp_path / "no.zip").exists()


def test_bad_input_is_refused_in_one_line(command, films, weights, tmp_path):
    out = tmp_path / "out"
    unknown = command("score", films, "--out", out, "-d", "image_quality", code=2)
    assert "did you mean 'imaging_quality'?" in last_error(unknown)
    assert "did you mean 'scene'?" in last_error(command("doctor", "scenes", code=2))
    missing = hiar("vbench", "score", films, "--out", out, "--environment", tmp_path / "none", folder=tmp_path, code=2)
    assert "make vbench" in last_error(missing)
    (weights / "amt_model" / "amt-s.pth").write_bytes(b"\x80\x02}q\x00.")
    wrong = command("score", films, "--out", out, "-d", SMOOTH, "--weights", weights, code=2)
    assert "is not the file you approved" in last_error(wrong)
    assert "is not the file you approved" in command("fetch", "amt_model/amt-s.pth", "--weights", weights).stdout
    few = tmp_path / "few.txt"
    few.write_text("a bird\n")
    assert "holds 1 prompts for the 3 videos" in last_error(
        command("score", films, "--out", out, "--prompts", few, code=2)
    )
    assert "is not one of VBench's weights" in last_error(command("fetch", "--approve", "amt-s.pth", code=2))
    assert "no file is named" in last_error(command("fetch", "--approve", code=2))
    assert "protocol = best" in last_error(command("score", films, "--out", out, "--protocol", "best", code=2))
    assert "device = tpu" in last_error(command("score", films, "--out", out, "--device", "tpu", code=2))
    assert not out.exists()


def test_unsuitable_input_is_refused_before_anything_is_scored(score, videos, weights, tmp_path):
    def refused(message, *dimensions, **options):
        with pytest.raises(UserError, match=message):
            score(videos, *dimensions, **options)

    refused("appearance_style: needs the suite's annotations", "appearance_style")
    for device in ("tpu", "cuda:", "cuda:1 x", "cpu:0"):
        refused(f"device = {device}: is not a device", FLICKERING, devices=["cpu", device])
    refused("device = cpu, cuda:0: GPUs and CPUs give different values", FLICKERING, devices=["cpu", "cuda:0"])
    refused("protocol = best: is not one of vbench, vbench-long", FLICKERING, protocol="best")
    (weights / "amt_model" / "amt-s.pth").write_bytes(b"<!DOCTYPE html>")
    refused("motion_smoothness: .*is a web page", FLICKERING, SMOOTH)
    (weights / "clip_model" / "ViT-B-32.pt").unlink()
    refused("background_consistency: .*ViT-B-32.pt: is missing", FLICKERING, "background_consistency")
    table = tmp_path / "prompts.json"
    for content, message in [
        ("[]", "is not an object"),
        ("{", "is not JSON"),
        ('{"0000.mp4": "a"}', "no prompt for 0001.mp4"),
    ]:
        table.write_text(content)
        refused(message, FLICKERING, prompts=table)
    refused("none.txt: cannot be read", FLICKERING, prompts=tmp_path / "none.txt")
    (videos / "captions.txt").unlink()
    refused("0000.mp4: is not named after a prompt", FLICKERING)
    (videos / "captions.txt").write_text("a bird\na bee\na bear\n")
    (videos / "0001.mp4").write_bytes((videos / "0001.mp4").read_bytes()[:300])
    refused("0001.mp4: is not a video, it holds data", FLICKERING)
    assert not (tmp_path / "out").exists()
    assert requests_of(weights) == []
