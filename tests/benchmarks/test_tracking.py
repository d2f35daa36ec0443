"""The benchmark of tracking, with MLflow's own server."""

from __future__ import annotations

import json

import pytest

from benchmarks.tracking import main


@pytest.mark.long
def test_every_case_is_measured(tmp_path):
    out = tmp_path / "tracking.json"
    assert main(["--rounds", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert len(result["seconds"]) == len(result["processor_seconds"]) == 5
    assert all(found["lowest"] > 0 for found in result["seconds"].values())
    assert result["direct_over_spool"].keys() == {"median", "lowest", "highest"}


def test_mistakes_are_one_line(tmp_path, capsys):
    assert main(["--rounds", "0", "--out", str(tmp_path / "tracking.json")]) == 2
    assert capsys.readouterr().err == "error: --rounds = 0: should be at least 1\n"
