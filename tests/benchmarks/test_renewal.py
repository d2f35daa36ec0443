"""The benchmark of renewed contexts, on small students."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from students import save_attentive_student

from benchmarks.renewal import METRICS, main


def test_both_walks_are_compared_video_by_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_attentive_student(tmp_path / "hiar")
    out = tmp_path / "renewal.json"
    request = ["--checkpoint", str(tmp_path / "hiar"), "--videos", "3", "--frames", "60", "--out", str(out)]
    assert main(request) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["metric"] for row in rows] == list(METRICS)
    assert all(row["over_seeds"] is None and row["over_videos"]["n"] == 3 for row in rows)
    background = rows[-1]
    assert background["over_videos"]["mean"] == pytest.approx(background["renewed"] - background["kept"], abs=1e-6)
    assert background["renewed"] != background["kept"]
    assert "good_segment_1" in out.with_suffix(".md").read_text()
    assert main([*request[:4], "--frames", "15", "--out", str(out)]) == 2
    assert "--frames = 15: must be twice a multiple of the block of 3 frames" in capsys.readouterr().err
