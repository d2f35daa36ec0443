"""The benchmark of drawing noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import drawing


def test_speeds_are_compared_round_by_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "NUMBERS", 1)
    out = tmp_path / "drawing.json"
    assert drawing.main(["--rounds", "2", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["cases"].keys() == drawing.CASES.keys()
    for case in result["cases"].values():
        ratio = case["speed_over_torch"]
        assert 0 < ratio["lowest"] <= ratio["median"] <= ratio["highest"]


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drawing.main(["--rounds", "0", "--out", str(tmp_path / "drawing.json")]) == 2
    assert capsys.readouterr().err == "error: --rounds = 0: should be at least 1\n"
