"""The benchmark as a command, on the smallest model that has the GPU presets' layout and types."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from benchmarks.presets import PRESETS, build
from benchmarks.report import main as report
from benchmarks.report import write_report
from benchmarks.rollout import fitting, main
from benchmarks.walks import ALONE, HIAR, SELF_FORCING
from hiar.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_smallest_run_writes_all_figures_and_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "results" / "tiny.json"
    options = ["--preset", "wan-tiny", "--blocks", "4", "--rounds", "1", "--processes", "2", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "benchmarks.rollout", *options], cwd=ROOT, check=True, timeout=600)
    result = json.loads(out.read_text())
    assert result.keys() >= {"hardware", "versions", "code", "threads", "dtype", "peak", "parts_seconds", "left_out"}
    assert (result["preset"], result["blocks"], result["dtype"]) == ("wan-tiny", 4, "bfloat16")
    walks = {walk["name"]: walk for walk in result["walks"]}
    assert len(walks) == len(ALONE) + 2 * 3
    assert walks["step_first separate"]["forward_calls"] == [4 * (4 + 3)]  # the last block's context is not read
    assert walks["diagonal batched"]["forward_calls"] == [4 + 4 - 1]
    assert walks["shared separate"]["forward_calls"] == [4 * 4 + 3]
    assert walks["pipelined separate, 2 processes"]["forward_calls"] == [14, 14]
    for walk in walks.values():
        assert walk["frames_per_second"]["low"] <= walk["frames_per_second"]["median"]
        assert walk["frames"] == (4 * 3 - 1) * 4 + 1  # frames of the video
        assert walk["frames_per_second_decoded"]["median"] > 0
        assert walk["predicted_seconds"] > 0
        assert walk["first_block_seconds"]["median"] <= walk["seconds"]["high"]
    assert "pipelined fused, 2 processes" in {ratio["walk"] for ratio in result["ratios"]}
    page = out.with_suffix(".md").read_text()
    assert all(f"| {name} |" in page for name in walks)
    ET.fromstring(out.with_suffix(".svg").read_text())
    guide = tmp_path / "speed.md"
    guide.write_text("before\n<!-- table: tiny -->\nold\n<!-- end of table -->\nafter\n")
    monkeypatch.setattr("benchmarks.report.GUIDE", guide)
    report([str(out)])
    before, *table, after = guide.read_text().splitlines()
    assert (before, after) == ("before", "after")
    assert "old" not in table
    assert sum(line.startswith(f"| {name} |") for name in walks for line in table) >= len(walks)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, g++")
def test_layers_run_compiled_and_in_fp8_in_other_processes_too(tmp_path: Path):
    out = tmp_path / "tiny.json"
    options = ["--preset", "wan-tiny", "--blocks", "2", "--rounds", "1", "--processes", "1", "--out", out]
    assert main([*map(str, options), "--compile", "--fp8"]) == 0
    result = json.loads(out.read_text())
    assert 0 < result["compiled"]["error"] < 0.05  # bf16 rounding
    assert result["compiled"]["first_call"] > result["parts_seconds"]["forward 1"]["median"]
    assert len(result["walks"]) == len(ALONE) + 3
    assert 0 < result["fp8"]["error"] < 0.05
    page = out.with_suffix(".md").read_text()
    assert "compiled layers (a pass on one block " in page
    assert "linear layers in fp8 (a pass on one block differs by " in page


def test_results_are_written_after_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine may be taken away before the last round."""
    out, written = tmp_path / "tiny.json", []

    def write(path: Path, result: dict[str, object]) -> str:
        page = write_report(path, result)
        written.append((result["rounds"], json.loads(path.read_text()) == json.loads(json.dumps(result))))
        return page

    monkeypatch.setattr("benchmarks.rollout.write_report", write)
    options = ["--preset", "wan-tiny", "--blocks", "2", "--rounds", "2", "--walk", SELF_FORCING.name]
    assert main([*options, "--out", str(out)]) == 0
    assert written == [(1, True), (2, True)]
    assert [walk["name"] for walk in json.loads(out.read_text())["walks"]] == [SELF_FORCING.name]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "wan-tinny"], "--preset = wan-tinny: no such preset; did you mean 'wan-tiny'?"),
        (["--preset", "world", "--blocks", "0"], "--blocks = 0: must be at least 1"),
        (["--preset", "world", "--rounds", "many"], "argument --rounds: invalid int value: 'many'"),
        (["--preset", "wan-tiny", "--walk", "diagonal batch"], "no such walk here; did you mean 'diagonal batched'?"),
        (["--preset", "world", "--processes", "5"], "--processes = 5: a pipeline has 1 to 4 processes"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*options, "--out", str(tmp_path / "out.json")]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_walks_that_do_not_fit_in_memory_are_left_out(monkeypatch: pytest.MonkeyPatch):
    setup = build(PRESETS["wan-tiny"](), torch.device("cpu"), batch=1)
    cache = 2 * 2 * 3 * 18 * 32 * 2  # layers, keys and values, blocks, tokens, width, bytes
    monkeypatch.setattr("benchmarks.rollout.free_bytes", lambda device: 2 * cache)
    kept, left_out = fitting(setup, [SELF_FORCING, HIAR], blocks=5)
    assert kept == [SELF_FORCING]
    assert list(left_out) == [HIAR.name]
    monkeypatch.setattr("benchmarks.rollout.free_bytes", lambda device: cache - 1)
    with pytest.raises(UserError, match="no walk fits in memory"):
        fitting(setup, [SELF_FORCING, HIAR], blocks=5)
