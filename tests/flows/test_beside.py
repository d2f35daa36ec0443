"""Experiments that are run and compared side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import hiar
from conftest import copy_project

from flows.comparison import beside_tables
from hiar.errors import UserError


def scored_workspace(folder: Path, offset: float, contenders: tuple[str, ...], videos: int = 4) -> Path:
    """A workspace with scores of two seeds, higher by ``offset``."""
    rows = [
        {
            "stage": name.partition("/")[0],
            "variant": name.partition("/")[2],
            "seed": seed,
            "video": video,
            "metrics": {"good": 0.5 + 0.1 * video + 0.01 * seed + offset, "border_jump": 1.0 - offset, "unshown": 7.0},
        }
        for name in contenders
        for seed in (0, 1)
        for video in range(videos)
    ]
    (folder / "metrics").mkdir(parents=True)
    (folder / "metrics" / "videos.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_experiments_are_compared_contender_by_contender(tmp_path: Path) -> None:
    both = ("teacher/teacher", "init/hiar", "distill/hiar", "world/world")
    tables = beside_tables(
        {
            "one": scored_workspace(tmp_path / "one", 0.0, both),
            "one+two": scored_workspace(tmp_path / "two", 0.2, both),
            "one+three": scored_workspace(tmp_path / "three", -0.1, ("distill/hiar",)),
        }
    )
    lines = tables.splitlines()
    assert [line for line in lines if line.endswith(", 95 % intervals")] == [
        "init/hiar, 95 % intervals",
        "distill/hiar, 95 % intervals",
    ]
    rows = [cells(line) for line in lines if line.startswith("| one")]
    # Means and intervals over two seeds: t = 12.706 times half of their difference of .01.
    assert [row[:2] for row in rows if "+" not in row[1]][:2] == [
        ["one", "0.655 ± 0.064"],
        ["one+two", "0.855 ± 0.064"],
    ]
    differences = [row for row in rows if row[1].startswith(("+", "-"))]
    assert [row[0] for row in differences] == ["one+two"] * 2 + ["one+two", "one+three"] * 2
    assert differences[-1] == ["one+three", "-0.100 ± 0.000", "+0.100 ± 0.000", "2"]
    assert differences[-3] == ["one+three", "-0.100 ± 0.000", "+0.100 ± 0.000", "8"]
    assert "teacher" not in tables
    assert "world" not in tables
    assert "unshown" not in tables


def test_experiments_with_different_videos_cannot_be_compared(tmp_path: Path) -> None:
    one = scored_workspace(tmp_path / "one", 0.0, ("distill/hiar",))
    two = scored_workspace(tmp_path / "two", 0.0, ("distill/hiar",), videos=3)
    with pytest.raises(UserError, match=r"one\+two, one: cannot be paired|one, one\+two: cannot be paired"):
        beside_tables({"one": one, "one+two": two})


def test_every_experiment_is_checked_before_any_begins(project) -> None:
    (project.folder / "experiments").mkdir(exist_ok=True)
    (project.folder / "experiments" / "mine.yaml").write_text("beside: [wrong]\n")
    (project.folder / "experiments" / "wrong.yaml").write_text("sample: {frames: 31}\n")
    line = hiar("run", "mine", folder=project.folder, code=2).stderr
    assert "experiments/wrong.yaml: sample.frames = 31: must be a multiple of video.block = 3" in line
    assert not (project.folder / "runs").exists()
    (project.folder / "experiments" / "wrong.yaml").write_text("sample: {frames: 30}\n")
    (project.folder / ".dvcignore").touch()
    (project.folder / "hiar").mkdir()
    output = hiar("run", "mine", "--dry-run", folder=project.folder).stdout
    assert re.findall("^mine.*$", output, re.MULTILINE) == ["mine", "mine+wrong"]
    assert output.count("4 stage(s) would run") == 2
    assert not list(project.folder.rglob("beside.md"))


@pytest.mark.long
def test_an_experiment_ends_with_a_comparison_to_those_beside_it(tmp_path: Path) -> None:
    """Two small inits; the stages they share run once."""
    copy_project(tmp_path / "project")
    folder = tmp_path / "project"
    small = "compare: {init: [hiar], distill: [hiar], walked: []}\nseeds: [0, 1]\n"
    (folder / "experiments" / "mine.yaml").write_text(f"over: smoke\nbeside: [init-forced]\n{small}")
    (folder / "experiments" / "init-forced.yaml").write_text(
        "over: init-teacher-forcing\ninit: {training: {steps: 3}}\n"
    )
    output = hiar("run", "mine", folder=folder, HIAR_TRACKING="off").stdout
    assert "This comparison: runs/mine/reports/beside.md" in output
    text = (folder / "runs" / "mine" / "reports" / "beside.md").read_text()
    assert text.count("| mine+init-forced |") == 2 * 3
    made = [folder / "runs" / name / "artifacts" / "seed-0" for name in ("mine", "mine+init-forced")]
    manifests = [[(root / stage / "manifest.json").read_bytes() for root in made] for stage in ("pairs", "init")]
    assert [one == other for one, other in manifests] == [True, False]
    assert "everything is up to date" in hiar("run", "mine", folder=folder, HIAR_TRACKING="off").stdout
