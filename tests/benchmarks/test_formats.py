"""The benchmark of number formats, on a small student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from students import save_student

from benchmarks.formats import FORMATS, METRICS, main
from hiar.io.artifacts import write_manifest
from hiar.models.card import CARD, load_card


def test_formats_are_compared_video_by_video(tmp_path: Path) -> None:
    save_student(tmp_path / "student")
    out = tmp_path / "formats.json"
    request = ("--checkpoint", tmp_path / "student", "--videos", 3, "--frames", 12, "--out", out)
    assert main([str(word) for word in request]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["format"] for row in rows] == list(FORMATS)
    assert all(rows[0]["from_fp32"][metric]["mean"] == 0 for metric in METRICS)
    assert rows[1]["pass_difference"] is None
    assert 0 < rows[2]["pass_difference"] < 0.05
    assert any(rows[2]["from_fp32"][metric]["mean"] != 0 for metric in METRICS)
    page = out.with_suffix(".md").read_text()
    assert all(f"| student, seed 0 | {name} |" in page for name in FORMATS)


@pytest.mark.parametrize(
    ("stage", "options", "words"),
    [
        ("teacher", ("--frames", 15), "is a teacher; name an init or a distilled student"),
        ("distill", ("--frames", 13), "--frames = 13: must be a positive multiple of the block of 3 frames"),
        ("distill", ("--videos", "many"), "argument --videos: invalid int value: 'many'"),
        ("distill", ("--out", "formats.md"), "--out = formats.md: should end with .json"),
        (
            "distill",
            ("--out", "params.yaml/x.json"),
            "params.yaml/x.json: not a directory; a part of this",
        ),
        ("distill", ("--videos", 1), "--videos = 1: has no standard error; give at least 2"),
    ],
)
def test_a_mistake_is_one_line(
    stage: str, options: tuple[object, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_student(tmp_path / "student")
    card = load_card(tmp_path / "student").model_copy(update={"stage": stage})
    (tmp_path / "student" / CARD).write_text(card.model_dump_json())
    write_manifest(tmp_path / "student", "checkpoint", stage=stage, seed=0, variant=None)
    request = ("--checkpoint", tmp_path / "student", "--out", tmp_path / "out.json", "--videos", 2, *options)
    assert main([str(word) for word in request]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
