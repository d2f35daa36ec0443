"""The benchmark of reading videos, on a few of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.reading import main


def test_speeds_are_compared_round_by_round(tmp_path: Path) -> None:
    out = tmp_path / "reading.json"
    assert main(["--videos", "2", "--frames", "5", "--rounds", "3", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["speed_over_pyav"]["lowest"] <= result["speed_over_pyav"]["median"]
    assert result["frames_per_second"].keys() == {"hiar", "pyav"}
    assert result["hardware"]


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "0", "--out", str(tmp_path / "reading.json")]) == 2
    assert capsys.readouterr().err == "error: --rounds = 0: should be at least 1\n"
    assert not list(tmp_path.iterdir())
