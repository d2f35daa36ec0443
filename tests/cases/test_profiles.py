"""`hiar score` by profiles on folders of any videos: what it writes, resumes from, and refuses in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, hiar
from torch import Tensor

from hiar.io.reading import read_head
from hiar.io.video import open_stream, write_mp4
from hiar.profiles.lite import DriftLite
from hiar.stages import profile_values

Run = Callable[..., str]
LITE = ("score", "videos", "--profile", "drift-lite", "--out")
OUT, VALUES = Path("out.json"), Path("out.videos.jsonl")


@pytest.fixture
def foreign(project: Path) -> Path:
    """The three videos as from another system: without captions and manifest."""
    (project / "videos" / "captions.txt").unlink()
    (project / "videos" / "manifest.json").unlink()
    return project / "videos"


def lines(path: Path = VALUES) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def flat(frames: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.full((frames, height, width, 3), 90, dtype=torch.uint8)


def streamed(path: Path, frames: int) -> None:
    """A video without its length in the header, as `hiar stream` writes them."""
    with open_stream(path, 64, 64, 12) as add:
        add(flat(frames))


def sound_alone(path: Path) -> None:
    import av
    import numpy as np

    with av.open(path, "w") as container:
        stream = container.add_stream("aac", 44100, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def test_fewer_large_frames_are_held_at_a_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least one; how many does not change the figures."""
    look, seen = DriftLite.look, []

    def counted(self: DriftLite, frames: Tensor, *others: Any) -> Any:
        seen.append(frames.shape[1])
        return look(self, frames, *others)

    monkeypatch.setattr(DriftLite, "look", counted)
    for frames, pixels in ((10, profile_values.PIXELS), (3, 3 * 64 * 64), (1, 64 * 64 - 1)):
        monkeypatch.setattr(profile_values, "PIXELS", pixels)
        seen.clear()
        run(*LITE, f"{frames}.json")
        assert max(seen) == frames
        assert json.loads(Path(f"{frames}.json").read_text()) == json.loads(Path("10.json").read_text())


def test_two_profiles_are_written_side_by_side_with_their_records(run: Run) -> None:
    run("score", "videos", "--profile", "oracle", "--profile", "drift-lite", "--out", OUT)
    result = json.loads(OUT.read_text())
    assert result.keys() == {"oracle", "drift-lite"}
    for name, entry in result.items():
        assert entry["record"]["profile"] == name
        assert (entry["videos"], entry["frames"], entry["width"], entry["height"], entry["rate"]) == (3, 10, 64, 64, 12)
        values = [line["metrics"] for line in lines() if line["profile"] == name]
        for metric, summary in entry["metrics"].items():
            found = [one[metric] for one in values if one[metric] is not None]
            assert summary["mean"] == pytest.approx(sum(found) / len(found), rel=1e-5, abs=1e-12)
            assert summary["n"] == len(found)
    assert [line["video"] for line in lines()] == ["0000.mp4", "0001.mp4", "0002.mp4"] * 2
    assert result["oracle"]["metrics"]["good"]["mean"] == 1
    apart = json.loads(run(*LITE, "-"))
    assert apart == {"drift-lite": result["drift-lite"]}
    assert json.loads(run("score", "videos", "--out", "-")) == {"oracle": result["oracle"]}


def test_videos_with_a_manifest_of_their_world_need_no_params_yaml(run: Run, project: Path) -> None:
    """The project's thresholds are then used, and a line says so."""
    with_one = json.loads(run("score", "videos", "--out", "-"))
    (project / "params.yaml").unlink()
    stderr = hiar("score", "videos", "--out", OUT, folder=project).stderr
    assert json.loads(OUT.read_text()) == with_one
    assert json.loads(run("score", "videos", "--profile", "oracle", "--out", "-")) == with_one
    assert f"score videos: with the thresholds of {ROOT / 'params.yaml'}, as there is no params.yaml here" in stderr


def test_the_order_of_files_changes_no_value(run: Run, foreign: Path) -> None:
    run(*LITE, OUT)
    before = {line["sha256"]: line["metrics"] for line in lines()}
    for old, new in (("0000", "9"), ("0002", "0")):
        (foreign / f"{old}.mp4").rename(foreign / f"{new}.mp4")
    run(*LITE, "other.json")
    after = lines(Path("other.videos.jsonl"))
    assert [line["video"] for line in after] == ["0.mp4", "0001.mp4", "9.mp4"]
    assert {line["sha256"]: line["metrics"] for line in after} == before


def test_a_video_that_fails_is_named_and_the_others_are_kept(run: Run, foreign: Path) -> None:
    run(*LITE, "whole.json")
    whole = (foreign / "0001.mp4").read_bytes()
    (foreign / "0001.mp4").write_bytes(whole[:-300])
    stderr = run(*LITE, OUT, code=2)
    (error,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: videos/0001.mp4: is ")
    assert [line["video"] for line in lines()] == ["0000.mp4", "0002.mp4"]
    assert not OUT.exists()
    (foreign / "0001.mp4").write_bytes(whole)
    run(*LITE, OUT)
    assert OUT.read_bytes() == Path("whole.json").read_bytes()
    assert VALUES.read_bytes() == Path("whole.videos.jsonl").read_bytes()


def test_videos_that_are_no_mp4_are_reported_as_left_out(run: Run, foreign: Path) -> None:
    """Tested together with an error, since `run` returns only stdout for a command that succeeds."""
    (foreign / "0003.mp4").write_bytes(b"of nothing")
    assert "no mp4" not in run(*LITE, OUT, code=2)
    for name in ("0003.webm", "0004.MOV"):  # in capitals, as cameras write it
        (foreign / name).write_bytes(b"of another system")
    stderr = run(*LITE, OUT, code=2)
    assert "videos: videos that are not mp4 are left out (2: 0003.webm, 0004.MOV); convert them" in stderr


def test_kept_values_are_reused_and_changed_videos_measured_again(run: Run, foreign: Path) -> None:
    """An impossible kept value shows that its video is not measured again; a changed video is."""
    run(*LITE, OUT)
    first, *others = lines()
    first["metrics"]["drift_lite"] = 7.0
    VALUES.write_text("".join(json.dumps(line) + "\n" for line in (first, others[0])) + json.dumps(others[1])[:99])
    run(*LITE, OUT)
    assert [line["metrics"]["drift_lite"] for line in lines()] == [7.0] + [
        one["metrics"]["drift_lite"] for one in others
    ]
    shutil.copy(foreign / "0001.mp4", foreign / "0000.mp4")
    kept = VALUES.read_text()
    with VALUES.open() as reader:
        run(*LITE, OUT)
        assert reader.read().startswith(kept)  # a concurrent reader sees a whole file
    assert [line["metrics"] for line in lines()] == [others[0]["metrics"], *(one["metrics"] for one in others)]
    assert [line["video"] for line in lines()] == ["0000.mp4", "0001.mp4", "0002.mp4"]


def test_drift_lite_needs_no_experiment(run: Run, mistake: Run, foreign: Path) -> None:
    with_params = run(*LITE, "-")
    Path("params.yaml").write_text("no: experiment\n")
    assert run(*LITE, "-") == with_params
    Path("params.yaml").unlink()
    assert run(*LITE, "-") == with_params
    assert mistake("score", "videos", "--profile", "oracle", "--out", OUT) == (
        "--profile = oracle: unknown here, as no params.yaml names the world of the videos; "
        "known: drift-lite, drift, vbench, vbench-long"
    )
    assert mistake("score", "videos", "--out", OUT).startswith("--profile: is missing, and neither ")


def test_only_the_profile_that_changed_is_measured_again(run: Run, project: Path) -> None:
    run("score", "videos", "--profile", "oracle", "--profile", "drift-lite", "--out", OUT)
    oracle, lite = lines()[:3], lines()[3:]
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("hop: 9.0", "hop: 0.5"))
    run("score", "videos", "--out", OUT)
    assert lines()[3:] == lite
    assert {line["record"] for line in lines()[:3]}.isdisjoint(line["record"] for line in oracle)
    assert all(new["metrics"]["hops"] > old["metrics"]["hops"] for new, old in zip(lines()[:3], oracle, strict=True))
    assert json.loads(OUT.read_text()).keys() == {"oracle"}


def test_a_changed_caption_is_measured_again_by_the_oracle_alone(run: Run, foreign: Path) -> None:
    captions = foreign / "captions.txt"
    captions.write_text("a red disc moves\n" * 3)
    run("score", "videos", "--profile", "oracle", "--profile", "drift-lite", "--out", OUT)
    kept = lines()
    for line in kept:
        line["metrics"]["saturation_drift"] = 7.0  # a value that no video has
    VALUES.write_text("".join(json.dumps(line) + "\n" for line in kept))
    captions.write_text("a red disc moves\na blue disc moves\na red disc moves\n")
    run("score", "videos", "--profile", "oracle", "--profile", "drift-lite", "--out", OUT)
    assert [line["metrics"]["saturation_drift"] == 7.0 for line in lines()] == [True, False, True, True, True, True]


def test_videos_may_have_odd_sizes_and_different_lengths(run: Run, foreign: Path) -> None:
    for number, frames in enumerate((12, 6, 11)):
        write_mp4(foreign / f"{number:04d}.mp4", flat(frames, 66, 250), (24, 23.976, 24)[number])
    run(*LITE, OUT)
    entry = json.loads(OUT.read_text())["drift-lite"]
    assert (entry["frames"], entry["width"], entry["height"], entry["rate"]) == ([6, 12], 250, 66, 24)
    assert entry["metrics"]["drift_lite"]["mean"] < 1e-6


def test_undefined_values_are_null_and_left_out_of_the_means(run: Run, foreign: Path) -> None:
    """Such as the relative change of the saturation of a video that begins in grey: its first part is 0."""
    write_mp4(foreign / "0000.mp4", torch.cat([flat(5), flat(5) * torch.tensor([2, 1, 0], dtype=torch.uint8)]), 12)
    run(*LITE, OUT)
    assert [one["metrics"]["saturation_vde"] is None for one in lines()] == [True, False, False]
    summary = json.loads(OUT.read_text())["drift-lite"]["metrics"]
    assert (summary["saturation_vde"]["n"], summary["saturation"]["n"]) == (2, 3)
    assert summary["saturation_vde"]["mean"] == pytest.approx(
        sum(one["metrics"]["saturation_vde"] for one in lines()[1:]) / 2, rel=1e-5
    )


def test_a_video_without_a_length_in_its_header_is_scored(run: Run, foreign: Path) -> None:
    streamed(foreign / "0001.mp4", 7)
    assert read_head(foreign / "0001.mp4").frames is None
    run(*LITE, OUT)
    assert [line["frames"] for line in lines()] == [10, 7, 10]


def spoil(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: make(folder / name)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (spoil("0001.mp4", lambda f: f.write_text("no video")), "0001.mp4: is not a readable video"),
        (spoil("0001.mp4", sound_alone), "0001.mp4: is not a video, it holds audio; make it again"),
        (spoil("0001.mp4", lambda f: f.write_bytes(f.read_bytes()[:2000])), "0001.mp4: is "),
        (
            spoil("0001.mp4", lambda f: write_mp4(f, flat(5), 12)),
            "0001.mp4: has 5 frames, drift-lite needs 6; make it longer or leave it out",
        ),
        (
            spoil("0001.mp4", lambda f: streamed(f, 5)),
            "0001.mp4: has 5 frames, drift-lite needs 6; make it longer or leave it out",
        ),
    ],
    ids=["text", "sound", "truncated", "short", "short, as its frames tell"],
)
def test_one_bad_video_is_named_and_the_others_are_kept(
    change: Callable[[Path], object], line: str, run: Run, foreign: Path
) -> None:
    change(foreign)
    output = run(*LITE, OUT, code=2).splitlines()
    assert output[-1].startswith(f"error: videos/{line}")
    assert output.count(f"score videos: left out: {output[-1].removeprefix('error: ')}") == 1
    assert [row["video"] for row in lines()] == ["0000.mp4", "0002.mp4"]


@pytest.mark.parametrize(("height", "width"), [(15, 64), (64, 15)])
def test_videos_too_small_for_optical_flow_are_refused(height: int, width: int, run: Run, foreign: Path) -> None:
    for number in range(3):
        write_mp4(foreign / f"{number:04d}.mp4", flat(8, max(16, height), max(16, width)), 12)
    run(*LITE, "-")
    for number in range(3):
        write_mp4(foreign / f"{number:04d}.mp4", flat(8, height, width), 12)
    stderr = run(*LITE, OUT, code=2)
    assert f"videos/0000.mp4: is {width}x{height} pixels, drift-lite needs 16 a side; leave it out" in stderr
    assert stderr.splitlines()[-1] == (  # no result was kept
        "error: videos: 3 of 3 videos cannot be scored (see above); fix or remove them"
    )


def test_several_bad_videos_are_each_named(run: Run, foreign: Path) -> None:
    for number in (0, 2):
        write_mp4(foreign / f"{number:04d}.mp4", flat(5), 12)
    output = run(*LITE, OUT, code=2).splitlines()
    assert sum("needs 6" in one for one in output) == 2
    assert output[-1] == (
        "error: videos: 2 of 3 videos cannot be scored (see above); fix or remove them; the others are kept in "
        "out.videos.jsonl"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            spoil("0002.mp4", lambda f: write_mp4(f, flat(10, 32, 64), 12)),
            "videos/0002.mp4: is 64x32 pixels, 0000.mp4 64x64; score each size in a folder of its own",
        ),
        (
            spoil("0002.mp4", lambda f: write_mp4(f, flat(10), 24)),
            "videos/0002.mp4: has 24 frames a second, 0000.mp4 12; score each rate in a folder of its own",
        ),
        (
            spoil("0002.mp4", lambda f: write_mp4(f, flat(10), 12.5)),
            "videos/0002.mp4: has 12.5 frames a second, 0000.mp4 12; score each rate in a folder of its own",
        ),
        (
            spoil("0002.mp4", lambda f: write_mp4(f, flat(10), 6)),
            "videos/0002.mp4: has 6 frames a second, 0000.mp4 12; score each rate in a folder of its own",
        ),
        (
            lambda folder: [one.unlink() for one in folder.iterdir()],
            "videos: holds no mp4 video; name a folder that does",
        ),
    ],
    ids=["sizes", "faster", "a little faster", "slower", "none"],
)
def test_folders_of_mixed_sizes_or_rates_or_without_videos_are_refused(
    change: Callable[[Path], object], line: str, mistake: Run, foreign: Path
) -> None:
    change(foreign)
    assert mistake(*LITE, OUT) == line


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["drift-light"], "--profile = drift-light: unknown here; did you mean 'drift-lite'?"),
        (
            ["drift"],
            ".none: holds no environment of VBench; build it with `make vbench` (two minutes, 1.6 GB)",
        ),
        (["vbench"], ".none: holds no environment of VBench; build it with `make vbench` (two minutes, 1.6 GB)"),
        (["looks"], "--profile = looks: unknown here; known: oracle, drift-lite, drift, vbench, vbench-long"),
        (["vbench", "drift-lite", "vbench"], "--profile = vbench: is given twice; give it once"),
        (["drift-lite", "drift-lite"], "--profile = drift-lite: is given twice; give it once"),
    ],
)
def test_unknown_repeated_and_unavailable_profiles_are_refused(
    names: list[str], line: str, mistake: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIAR_VBENCH", ".none")
    options = [part for name in names for part in ("--profile", name)]
    assert mistake("score", "videos", *options, "--out", OUT) == line


@pytest.mark.parametrize("content", ["no json\n", "[1]\n", '{"video": "0000.mp4"}\n'])
def test_a_file_that_holds_no_kept_results_is_not_written_to(content: str, mistake: Run) -> None:
    VALUES.write_text(content)
    assert mistake(*LITE, OUT) == (
        "out.videos.jsonl: line 1 is not a kept result; move the file away or choose another --out"
    )


def test_two_processes_do_not_write_the_same_results(run: Run, foreign: Path) -> None:
    import fcntl

    with VALUES.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        stderr = run(*LITE, OUT, code=2)
    assert "error: out.videos.jsonl: another process is writing it" in stderr
