"""The harness really kills the whole process group, and distinguishes a good resume from a bad one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from crash.harness import Start, file_hashes, kill_and_resume


def starts(*command: str, folder: Path) -> Start:
    return lambda log: subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdout=log, stderr=log, start_new_session=True
    )


def toy(folder: Path, kind: str) -> Start:
    return starts(str(Path(__file__).with_name("toy.py")), str(folder / "out"), kind, folder=folder)


def test_a_good_resume_leaves_what_an_unkilled_run_leaves(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = kill_and_resume(toy(tmp_path, "good"), [0.3, 0.8], out)
    assert [run["sha256"] for run in result["killed"]] == [result["clean"]] * 2
    assert all(run["left"] != "nothing" for run in result["killed"])
    assert (out / "history.txt").read_text().split() == [str(step) for step in range(40)]
    helpers = (tmp_path / "helpers.txt").read_text().split()
    assert len(helpers) >= 5  # one clean run, two killed, two resumed
    assert not any(is_running(pid) for pid in helpers)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "helpers.txt"}


def is_running(pid: str) -> bool:
    status = Path("/proc", pid, "stat")
    return status.exists() and status.read_text().split()[2] != "Z"


def test_a_bad_resume_is_found(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = kill_and_resume(toy(tmp_path, "forgetful"), [0.5], out)
    (run,) = result["killed"]
    assert run["sha256"] != result["clean"]
    assert run["different"] == ["out/history.txt", "out/manifest.json"]


def test_a_command_that_fails_by_itself_raises_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        kill_and_resume(starts("-c", "raise SystemExit('no such thing')", folder=tmp_path), [], tmp_path / "out")


def test_hashes_see_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_text("1")
    (tmp_path / "b").write_text("1")
    hashes = file_hashes([tmp_path / "deep", tmp_path / "b"])
    assert hashes.keys() == {"deep/a", "b"}
    assert hashes["deep/a"] == hashes["b"]
    (tmp_path / "b").write_text("2")
    assert file_hashes([tmp_path / "b"])["b"] != hashes["b"]
    with pytest.raises(RuntimeError, match="was not written"):
        file_hashes([tmp_path / "missing"])
