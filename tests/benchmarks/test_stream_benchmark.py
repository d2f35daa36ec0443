"""The benchmark of streams as a command, for a few blocks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from students import save_student

from benchmarks.stream import main


def test_a_short_run_writes_all_figures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_student(tmp_path / "student")
    out = tmp_path / "results" / "stream.json"
    assert main(["--checkpoint", str(tmp_path / "student"), "--blocks", "12", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["blocks"] == {"all": 12, "early": [4, 8], "late": [8, 12]}
    assert result["film"]["frames_that_play"] == result["film"]["frames_written"] >= 12 * 3
    assert result["film"]["exit_code_after_sigint"] == 0
    assert result["first_frames"]["seconds"] > 0
    assert 1 <= result["first_frames"]["blocks_begun_to_be_written"] < 4
    assert result["resident_bytes"]["end"] > 0
    assert [point["block"] for point in result["trace"]] == [4, 8, 12]
    assert result.keys() >= {"hardware", "versions", "code", "threads", "student", "walk", "seconds_a_block"}
    assert "first_frames: seconds" in capfd.readouterr().out


def test_impossible_measurements_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "stream.json")
    assert main(["--blocks", "3", "--out", out]) == 2
    assert capsys.readouterr().err == "error: --blocks = 3: are too few to compare; give at least 6\n"
    assert main(["--checkpoint", str(tmp_path), "--out", out]) == 2
    assert "generator.json: no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    os.mkfifo(tmp_path / "pipe.json")
    assert main(["--out", str(tmp_path / "pipe.json")]) == 2
    assert capsys.readouterr().err.endswith("pipe.json: is a pipe or a device; name a file\n")
