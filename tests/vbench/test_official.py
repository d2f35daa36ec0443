"""Our values equal VBench's own, to the last bit and for each video, with random weights in the published formats.

Needs `make vbench`, six gigabytes of disk while it runs, and tens of minutes on a busy machine.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from hiar.io.video import write_mp4
from hiar.vbench.across import BRANCHES
from hiar.vbench.asking import WORKER
from hiar.vbench.clips import FIRST_FRAMES, clip_frames, cut
from hiar.vbench.dimensions import DIMENSIONS, RAFT
from hiar.vbench.environment import default_folder, find_environment
from hiar.vbench.runner import score_folder
from hiar.vbench.suite import file_name, read_suite
from hiar.vbench.weights import WEIGHTS, approve

HERE = Path(__file__).parent
QUALITY = [name for name, one in DIMENSIONS.items() if one.group == "quality"]
# Without GRiT's four, which need detectron2, and scene, where VBench keeps gradients: over twenty gigabytes a video.
SEMANTIC = ["human_action", "appearance_style", "temporal_style", "overall_consistency"]


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (default_folder() / ".ready").exists(), reason=f"{default_folder().name} is not built: make vbench"
    ),
]


@pytest.fixture(scope="module")
def environment():
    return find_environment(default_folder())


@pytest.fixture(scope="module")
def weights(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "vbench"
    subprocess.run([environment.python, "-I", HERE / "random_weights.py", WORKER, folder], check=True)
    for name in WEIGHTS:
        if (folder / name).is_file():
            approve(folder, name)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def videos(environment, tmp_path_factory):
    """Two videos for each of two prompts of each dimension, of different lengths."""
    folder = tmp_path_factory.mktemp("videos")
    suite = read_suite(environment.suite)
    noise = torch.Generator().manual_seed(7)
    for dimension in QUALITY + SEMANTIC:
        for place, entry in enumerate([entry for entry in suite if dimension in entry.dimensions][:2]):
            for sample in range(2):
                path = folder / file_name(entry.prompt, sample)
                if not path.exists():
                    write_mp4(path, drifting(noise, 9 + 3 * sample + 2 * place), 8)
    return folder


def drifting(noise, frames):
    """A noisy pattern that moves at a different speed in each video: (frames, 192, 256, 3)."""
    coarse = torch.rand(1, 3, 12, 16, generator=noise)
    picture = torch.nn.functional.interpolate(coarse, size=(192, 256), mode="bilinear")[0].permute(1, 2, 0)
    step = int(torch.randint(0, 9, (), generator=noise))
    moved = torch.stack([picture.roll(step * frame, 1) for frame in range(frames)])
    return ((moved + 0.03 * torch.randn(moved.shape, generator=noise)).clamp(0, 1) * 255).byte()


@pytest.fixture(scope="module")
def official(environment, weights, videos, tmp_path_factory):
    """VBench's own results, by dimension."""
    out, home = tmp_path_factory.mktemp("official"), tmp_path_factory.mktemp("home")
    checkpoints = home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    name = "dino_vitbase16_pretrain.pth"
    (checkpoints / name).symlink_to(weights / "dino_model" / name)
    command = [environment.python, "-I", HERE / "official.py", WORKER, weights, home, videos, out, *QUALITY, *SEMANTIC]
    subprocess.run(command, check=True)
    return {name: json.loads((out / f"{name}_eval_results.json").read_text())[name] for name in QUALITY + SEMANTIC}


@pytest.fixture(scope="module")
def ours(weights, videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("ours")
    scores = score_folder(videos, QUALITY + SEMANTIC, out, weights=weights)
    assert not scores.failed
    return {name: json.loads((out / f"{name}.json").read_text()) for name in QUALITY + SEMANTIC}


@pytest.mark.parametrize("dimension", QUALITY + SEMANTIC)
def test_value_and_videos_are_the_official_ones(dimension, official, ours):
    value, records = official[dimension]
    by_video = {os.path.basename(one["video_path"]): one["video_results"] for one in records}
    assert len(by_video) == 4
    assert ours[dimension]["by_video"] == by_video
    tolerance = 1e-15 if dimension == "subject_consistency" else 0  # VBench does not report the terms of its sum there
    assert ours[dimension]["value"] == pytest.approx(value, rel=tolerance, abs=0)


@pytest.mark.parametrize(("scale", "samples"), [(0, 11), (1, 2)])
def test_still_videos_are_those_of_vbenchs_filter(scale, samples, environment, weights, tmp_path):
    """With a network that never sees motion, and with one that always does."""
    folder, own, noise = tmp_path / "videos", tmp_path / "weights", torch.Generator().manual_seed(9)
    folder.mkdir()
    [entry, *_] = [entry for entry in read_suite(environment.suite) if "temporal_flickering" in entry.dimensions]
    for sample in range(samples):
        write_mp4(folder / file_name(entry.prompt, sample), drifting(noise, 2)[:, :128, :128], 8)
    [name] = RAFT
    (own / name).parent.mkdir(parents=True)
    state = torch.load(weights / name, weights_only=True)
    torch.save({key: value * (scale if ".flow_head.conv2." in key else 1) for key, value in state.items()}, own / name)
    approve(own, name)
    command = [environment.python, "-I", HERE / "official_filter.py", WORKER, own, folder, tmp_path]
    subprocess.run(command, check=True)
    report = json.loads((tmp_path / "filtered.json").read_text())
    theirs = {os.path.basename(path) for one in report.values() for path in one["static_path"]}
    scores = score_folder(folder, ["temporal_flickering"], tmp_path / "out", weights=own, static_filter=True)
    if scale:
        assert theirs == set()
        assert "none of the 2 videos is still" in scores.failed["temporal_flickering"]
    else:
        assert theirs == {file_name(entry.prompt, sample) for sample in (0, 1, 10, 2, 3)}
        assert {*json.loads((tmp_path / "out" / "temporal_flickering.json").read_text())["by_video"]} == theirs


LONG = {"a bird-0": 18, "a bee-1": 12, "a bear-2": 7, "a bug-3": 3}  # frames, at 2 per second


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    noise = torch.Generator().manual_seed(8)
    for name, frames in LONG.items():
        write_mp4(folder / f"{name}.mp4", drifting(noise, frames), 2)
    (folder / "prompts.json").write_text(json.dumps({f"{name}.mp4": name for name in LONG}))
    return folder


@pytest.fixture(scope="module")
def official_long(environment, weights, long_videos, tmp_path_factory):
    """The results of VBench-Long's own functions on the clips that we cut."""
    root = tmp_path_factory.mktemp("official-long")
    clips, firsts, home = (root / name for name in ("clips", "firsts", "home"))
    for folder in (firsts, home / "dreamsim", home / "hub" / "checkpoints"):
        folder.mkdir(parents=True)
    for name, frames in LONG.items():
        parts = clip_frames(frames, 2, 2)
        paths = cut(long_videos / f"{name}.mp4", parts, 2, root / "cut" / name)
        (clips / name).mkdir(parents=True)
        for number, path in enumerate(paths):
            path.rename(clips / name / f"{name}_{number:03d}.mp4")
        if len(parts) > 1:
            (root / "cut" / name / FIRST_FRAMES).rename(firsts / f"{name}.mp4")
    for path in (weights / "dreamsim").iterdir():
        (home / "dreamsim" / path.name).symlink_to(path)
    (home / "dreamsim" / "facebookresearch_dino_main").symlink_to(weights / "dino_model" / "facebookresearch_dino_main")
    (home / "dreamsim" / "checkpoints").symlink_to(weights / "dino_model")
    name = "dino_vitbase16_pretrain.pth"
    (home / "hub" / "checkpoints" / name).symlink_to(weights / "dino_model" / name)
    command = [environment.python, "-I", HERE / "official_long.py", WORKER, weights, home, clips, firsts, root]
    subprocess.run(command, check=True)
    return {name: json.loads((root / f"{name}.json").read_text()) for name in BRANCHES}


def test_both_branches_of_long_videos_are_vbench_longs_own(weights, long_videos, official_long, tmp_path):
    """Except the mean, where VBench-Long counts each clip. It batches frames, so the last digits differ."""
    scores = score_folder(
        long_videos, BRANCHES, tmp_path, weights=weights, prompts=long_videos / "prompts.json", protocol="vbench-long"
    )
    assert not scores.failed
    for name, clips in official_long.items():
        ours = json.loads((tmp_path / f"{name}.json").read_text())
        own = {video: [value for of, value in clips if of == video] for video, _ in clips}
        assert [len(own[f"{video}.mp4"]) for video in LONG] == [5, 3, 2, 1]
        assert ours["by_video"] == pytest.approx({video: sum(values) / len(values) for video, values in own.items()})
        assert len({round(value, 5) for value in ours["by_video"].values()}) == len(LONG)
