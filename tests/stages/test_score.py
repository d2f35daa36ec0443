import json
import shutil
import statistics

import pytest
import torch
from sampled import FRAMES, ROOT, VIDEOS, sampled_workspace, small_params, true_clips, write_samples

from hiar.errors import UserError
from hiar.io.artifacts import MANIFEST, write_manifest
from hiar.io.reading import PART
from hiar.io.video import read_mp4, write_mp4
from hiar.judges.interface import open_judge
from hiar.stages import looking, score
from hiar.stages.comparison import read_summary
from hiar.stages.profiles import score_folder

BASIC = {"good", "residual", "smoothed_speed", "saturation_drift", "sharpness_drift", "background_shift", "border_jump"}
TOLERANCES = {"good": 0, "residual": 0.01, "smoothed_speed": 0.02, "saturation_drift": 0.001, "border_jump": 0.02}


@pytest.fixture(scope="module")
def params():
    return small_params()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, params):
    folder = tmp_path_factory.mktemp("scored")
    sampled_workspace(folder, params)
    score.run(params, folder)
    return folder


@pytest.fixture
def project(tmp_path):
    """A folder with params.yaml, in which `hiar score` can be run."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").symlink_to(ROOT / "params.yaml")
    return root


def samples(tmp_path, params):
    folder = tmp_path / "samples"
    frames, captions = true_clips(params, seed=0, frames=FRAMES)
    write_samples(folder, frames, captions, params)
    return folder


def test_the_summary_has_one_row_per_model_and_seed(workspace, params):
    rows = read_summary(params, workspace)
    keys = [(row["seed"], row["stage"], row["variant"], row["order"], row["context"]) for row in rows]
    one_seed = [
        ("teacher", "teacher", None, None),
        ("init", "self-forcing", "block_first", "finished"),
        ("init", "hiar", "step_first", "output"),
        ("distill", "self-forcing", "block_first", "finished"),
        ("distill", "hiar", "step_first", "output"),
        ("distill", "hiar-no-fkl", "step_first", "output"),
    ]
    assert keys == [(seed, *rest) for seed in params.seeds for rest in one_seed]
    for row in rows:
        assert set(row) == {"stage", "variant", "order", "context", "seed", "metrics"}
        assert row["metrics"].keys() >= BASIC
        assert all(
            set(summary) == {"mean", "se", "n"} and summary["n"] == VIDEOS for summary in row["metrics"].values()
        )


def test_scores_distinguish_fading_videos_from_true_ones(workspace, params):
    rows = read_summary(params, workspace)
    truth = json.loads((workspace / "metrics" / "world.json").read_text())
    for row in rows:
        metrics = row["metrics"]
        if row["stage"] == "init":
            assert metrics["good"]["mean"] < 0.7
            assert metrics["good_segment_1"]["mean"] == 1
            assert metrics["saturation_drift"]["mean"] > 0.1
        elif row["stage"] == "distill":
            # These samples are the world's own clips, and h264 loses next to nothing.
            true = truth[row["seed"]]["metrics"]
            for name, within in TOLERANCES.items():
                assert metrics[name]["mean"] == pytest.approx(true[name]["mean"], abs=within), name
    assert [row["seed"] for row in truth] == params.seeds


def test_every_video_has_a_line_and_summaries_are_means_over_them(workspace, params):
    lines = [json.loads(line) for line in (workspace / "metrics" / "videos.jsonl").read_text().splitlines()]
    keys = ["stage", "variant", "order", "context", "seed"]
    assert all(list(line) == [*keys, "video", "metrics"] for line in lines)
    by_row = {}
    for line in lines:
        by_row.setdefault(tuple(line[key] for key in keys), []).append(line)
    rows = read_summary(params, workspace)
    world = {"stage": "world", "variant": "world", "order": None, "context": None}
    rows += [world | row for row in json.loads((workspace / "metrics" / "world.json").read_text())]
    assert list(by_row) == [tuple(row[key] for key in keys) for row in rows]
    for row in rows:
        videos = by_row[tuple(row[key] for key in keys)]
        assert [one["video"] for one in videos] == list(range(VIDEOS))
        for name, summary in row["metrics"].items():
            values = [one["metrics"][name] for one in videos]
            assert summary["mean"] == pytest.approx(statistics.fmean(values), rel=1e-5, abs=1e-12), name
            assert summary["se"] == pytest.approx(statistics.stdev(values) / VIDEOS**0.5, rel=1e-5, abs=1e-12), name


def test_scoring_again_gives_the_same_bytes(workspace, params):
    files = [workspace / "metrics" / name for name in ("summary.json", "world.json", "videos.jsonl")]
    before = [path.read_bytes() for path in files]
    score.run(params, workspace)
    assert [path.read_bytes() for path in files] == before


def test_only_what_is_compared_is_scored(workspace, params, tmp_path):
    changes = {"compare": {"distill": []}, "runtime": {"threads": 2}}  # not the default number of threads
    sections = {name: getattr(params, name).model_copy(update=change) for name, change in changes.items()}
    fewer = params.model_copy(update={"seeds": [1], **sections})
    (tmp_path / "artifacts").symlink_to(workspace / "artifacts")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    score.run(fewer, tmp_path)
    assert json.loads((tmp_path / "logs" / "score.json").read_text())["threads"] == 2
    torch.set_num_threads(before)
    summary = json.loads((tmp_path / "metrics" / "summary.json").read_text())
    found = {(stage, variant, *seeds) for stage, variants in summary.items() for variant, seeds in variants.items()}
    assert found == {("teacher", "teacher", "seed-1"), ("init", "hiar", "seed-1"), ("init", "self-forcing", "seed-1")}


def test_an_experiment_is_judged_by_its_own_world_not_its_samples_manifests(params, workspace, tmp_path):
    """For instance after a change of a parameter that affects no video: all rows are measured in the same way."""
    alone = params.model_copy(
        update={"seeds": [0], "compare": params.compare.model_copy(update={"init": [], "distill": []})}
    )
    folder = tmp_path / "artifacts" / "seed-0"
    for name in ("codec", "samples/teacher"):
        shutil.copytree(workspace / "artifacts" / "seed-0" / name, folder / name)
    _, fast = params.world.speed  # at twice that speed, none of these videos would count as moving
    hasty = params.world.model_dump(mode="json") | {"speed": [2 * fast, 2 * fast]}
    write_manifest(folder / "samples" / "teacher", "samples", world=hasty, block=params.video.block)
    score.run(alone, tmp_path)
    (row,) = read_summary(alone, tmp_path)
    assert row["metrics"]["dynamic"]["mean"] == 1


def test_missing_samples_are_named(params, tmp_path):
    with pytest.raises(UserError, match=r"seed-0/samples/teacher/manifest\.json: no such file"):
        score.run(params, tmp_path)
    assert not (tmp_path / "metrics").exists()


def test_folder_is_scored_with_or_without_a_manifest(params, tmp_path, project):
    folder, out = samples(tmp_path, params), tmp_path / "score.json"
    score_folder(folder, [], out, project)
    with_manifest = out.read_bytes()
    result = json.loads(with_manifest)["oracle"]
    assert (result["videos"], result["frames"]) == (VIDEOS, FRAMES)
    assert result["metrics"]["good"]["mean"] == 1
    assert result["record"]["protocol"].keys() == {"world", "score", "first_block", "block"}
    (folder / MANIFEST).unlink()
    score_folder(folder, [], out, project)
    assert out.read_bytes() == with_manifest


def test_a_folder_is_judged_by_the_world_in_its_manifest(params, tmp_path, project):
    world = params.world.model_dump(mode="json") | {"size": 128, "radius": 20.0}
    own = small_params(world=world, video=params.video.model_dump(mode="json") | {"block": 5})
    folder = samples(tmp_path, own)
    score_folder(folder, [], tmp_path / "score.json", project)
    result = json.loads((tmp_path / "score.json").read_text())["oracle"]
    protocol = result["record"]["protocol"]
    assert (protocol["world"], protocol["block"]) == (world, 5)
    assert result["metrics"]["good"]["mean"] == 1
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="videos are 128x128 pixels, the world 64x64"):
        score_folder(folder, [], tmp_path / "score.json", project)


def test_videos_are_judged_by_the_captions_in_their_folder(params, tmp_path, project):
    folder = samples(tmp_path, params)
    (folder / MANIFEST).unlink()
    captions = [
        f"a {'blue' if 'red' in line else 'red'} disc moves"
        for line in (folder / "captions.txt").read_text().splitlines()
    ]
    (folder / "captions.txt").write_text("\n".join(captions))
    score_folder(folder, [], tmp_path / "score.json", project)
    assert json.loads((tmp_path / "score.json").read_text())["oracle"]["metrics"]["good"]["mean"] == 0


def truncate_video(folder):
    path = folder / "0001.mp4"
    path.write_bytes(path.read_bytes()[:400])


def shorten_video(folder):
    write_mp4(folder / "0001.mp4", read_mp4(folder / "0001.mp4")[:12], 12)


@pytest.mark.parametrize(
    ("spoil", "manifest", "message"),
    [
        (lambda f: (f / "captions.txt").unlink(), False, "captions.txt: no such file; write one caption a line"),
        (lambda f: (f / "captions.txt").write_text("a red disc moves\n"), False, "holds 1 captions for 3 videos"),
        (lambda f: (f / "captions.txt").write_text(""), False, "captions.txt: holds an empty line or nothing"),
        (lambda f: (f / "captions.txt").write_bytes(b"\xff\xfe\n" * 3), False, "captions.txt: is not UTF-8"),
        (lambda f: (f / "captions.txt").write_text("a red cow moves\n" * 3), False, "unknown word 'cow'"),
        (lambda f: (f / "0002.mp4").unlink(), False, "holds 3 captions for 2 videos"),
        (truncate_video, False, "0001.mp4"),
        (truncate_video, True, "0001.mp4: size"),
        (shorten_video, False, "0001.mp4: is 12 frames of 64x64, 0000.mp4 30 frames of 64x64"),
    ],
)
def test_bad_folders_are_refused_and_nothing_is_written(spoil, manifest, message, params, tmp_path, project):
    folder = samples(tmp_path, params)
    if not manifest:
        (folder / MANIFEST).unlink()
    spoil(folder)
    out = tmp_path / "score.json"
    with pytest.raises(UserError) as caught:
        score_folder(folder, [], out, project)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_videos_of_an_unknown_world_need_a_profile_for_any_videos(params, tmp_path):
    folder = samples(tmp_path, params)
    (folder / MANIFEST).unlink()
    elsewhere, remedy = (
        tmp_path / "no project",
        "--profile: is missing, .*; name one that suits any video, such as drift-lite$",
    )
    with pytest.raises(UserError, match=remedy):
        score_folder(folder, [], tmp_path / "score.json", elsewhere)


def test_parts_and_batches_change_nothing(params, monkeypatch):
    """A video has the same scores in parts as whole, and short videos have the same ones together as alone."""
    monkeypatch.setattr(looking, "FEW", 2)
    for frames, parts in ((300, PART), (30, 7)):
        videos, captions = true_clips(params, seed=0, frames=frames)
        judge = open_judge(params.world, params.score, params.video.block, params.video.block)
        settings = (judge, "videos")
        whole = score.score([[video] for video in videos], captions, *settings)
        in_parts = score.score([video.split(parts) for video in videos], captions, *settings)
        alone = [score.score([[video]], [line], *settings) for video, line in zip(videos, captions, strict=True)]
        for name, values in whole.items():
            assert torch.equal(in_parts[name], values)
            torch.testing.assert_close(torch.cat([one[name] for one in alone]), values, rtol=1e-4, atol=1e-6)


def test_the_protocol_has_a_first_block_of_another_size(params, tmp_path):
    for first, expected in ((9, 9), (None, 12)):
        world = params.world.model_dump(mode="json")
        write_manifest(tmp_path, "samples", world=world, first_block=first, block=12)
        protocol = score.protocol_of(tmp_path, params)
        assert (protocol.first_block, protocol.block) == (expected, 12)
        assert protocol.judge().blocks == (expected, 12)


def test_as_many_frames_as_the_judge_needs_are_enough(params, capsys):
    judge = open_judge(params.world, params.score, params.video.block, params.video.block)
    videos, captions = true_clips(params, seed=0, frames=judge.least_frames)
    values = score.score([[video] for video in videos], captions, judge, "mine", judge.least_frames)
    assert len(values["good"]) == VIDEOS
    count = judge.least_frames * VIDEOS
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"score mine: {count}/{count} frames in ")
    with pytest.raises(UserError, match=rf"^mine: .*{judge.least_frames - 1} frames.* needs {judge.least_frames}"):
        score.score([[video[1:]] for video in videos], captions, judge, "mine")


def test_reused_and_dropped_results_are_reported(params, tmp_path, project, capsys):
    folder, out = samples(tmp_path, params), tmp_path / "score.json"
    (folder / MANIFEST).unlink()
    for number in range(VIDEOS):
        (folder / f"{number:04d}.mp4").rename(folder / f"{number + 9}.mp4")
    score_folder(folder, [], out, project)
    stderr = capsys.readouterr().err
    assert f"score {folder}: captions go to videos by number: 9.mp4 comes before 10.mp4" in stderr
    assert "scored already" not in stderr
    frames, _ = true_clips(params, seed=1, frames=FRAMES)
    for number in (11, 10):
        write_mp4(folder / f"{number}.mp4", frames[number - 9], 12)
    score_folder(folder, [], out, project)
    stderr = capsys.readouterr().err
    assert f"score {folder}: 1 of 3 videos are scored already" in stderr
    assert "score.videos.jsonl: 2 results dropped, of videos or profiles that have changed (10.mp4 first)" in stderr
    score_folder(folder, ["drift-lite"], out, project)
    assert " results dropped" not in capsys.readouterr().err  # the oracle's results are kept


def test_a_missing_folder_is_named(tmp_path, project):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        score_folder(tmp_path / "nowhere", [], tmp_path / "score.json", project)


def test_videos_too_short_for_the_segments_are_refused(params, tmp_path, project):
    folder = tmp_path / "samples"
    frames, captions = true_clips(params, seed=0, frames=3)
    write_samples(folder, frames, captions, params)
    with pytest.raises(UserError, match="videos have 3 frames, scoring needs 5"):
        score_folder(folder, [], tmp_path / "score.json", project)
    write_samples(tmp_path / "enough", *true_clips(params, seed=0, frames=5), params)
    score_folder(tmp_path / "enough", [], tmp_path / "score.json", project)
    assert json.loads((tmp_path / "score.json").read_text())["oracle"]["metrics"]["good"]["mean"] == 1


def by_profile(name):
    return small_params(seeds=[0], score=small_params().score.model_dump(mode="json") | {"profiles": [name]})


def test_drift_is_a_score_of_an_experiment(workspace, tmp_path, capsys):
    """The values of `hiar score` under names that no judge has, for the true world too; nothing is computed twice."""
    params, work = by_profile("drift-lite"), tmp_path / "work"
    shutil.copytree(workspace, work)
    score.run(params, work)
    folder = work / "artifacts" / "seed-0" / "samples" / "init" / "hiar"
    [row] = [one for one in read_summary(params, work) if (one["stage"], one["variant"]) == ("init", "hiar")]
    score_folder(folder, ["drift-lite"], tmp_path / "score.json")
    alone = json.loads((tmp_path / "score.json").read_text())["drift-lite"]
    names = {
        "drift_lite": "drift_lite",
        "drift_lite_floor": "drift_lite_floor",
        "drift_lite_saturation_trend": "saturation_trend",
        "drift_lite_ssim_trend": "ssim_trend",
    }
    assert {name: row["metrics"][name] for name in names} == {
        name: alone["metrics"][own] for name, own in names.items()
    }
    mine = {name for name in row["metrics"] if name.startswith("drift_lite")}
    assert len(mine) == 2 + 6
    assert row["metrics"]["saturation_drift"] == pytest.approx(
        read_summary(small_params(), workspace)[1]["metrics"]["saturation_drift"]
    )
    lines = [json.loads(line) for line in (work / "metrics" / "videos.jsonl").read_text().splitlines()]
    values = {
        stage: [line["metrics"]["drift_lite"] for line in lines if line["stage"] == stage and line["variant"] in walk]
        for stage, walk in {"init": ["hiar"], "world": ["world"]}.items()
    }
    assert statistics.mean(values["init"]) == pytest.approx(row["metrics"]["drift_lite"]["mean"], rel=1e-5)
    assert statistics.mean(values["init"]) > statistics.mean(values["world"])  # the world's colours do not fade
    truth = json.loads((work / "metrics" / "world.json").read_text())
    assert truth[0]["metrics"].keys() >= mine
    assert json.loads((work / "metrics" / "profiles.json").read_text())["drift-lite"] == alone["record"]
    capsys.readouterr()
    (folder / "0001.mp4").write_bytes((folder / "0002.mp4").read_bytes())
    write_manifest(folder, "samples", world=params.world.model_dump(mode="json"), block=params.video.block)
    score.run(params, work)
    stderr = capsys.readouterr().err
    assert f"score {folder}: 3 of 3 videos are scored already" in stderr  # the second has become the third
    assert "hiar.jsonl: 1 results dropped, of videos or profiles that have changed" in stderr
    assert stderr.count("3 of 3 videos are scored already") == len(params.compare.students) + 1


def test_an_impossible_profile_is_refused_before_scoring(tmp_path, monkeypatch):
    monkeypatch.setenv("HIAR_VBENCH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="make vbench"):
        score.run(by_profile("drift"), tmp_path)
    params = by_profile("drift-lite")
    small = params.model_copy(update={"world": params.world.model_copy(update={"size": 8})})
    with pytest.raises(UserError, match=r"^score\.profiles: drift-lite needs 16 pixels a side, the world has 8x8; "):
        score.run(small, tmp_path)


def test_videos_too_short_for_a_profile_are_refused(tmp_path):
    params = by_profile("drift-lite")
    short = params.model_copy(update={"sample": params.sample.model_copy(update={"frames": 5})})
    sampled_workspace(tmp_path, short)
    with pytest.raises(UserError, match="have 5 frames, scoring needs 6"):
        score.run(short, tmp_path)
