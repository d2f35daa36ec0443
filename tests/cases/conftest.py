"""A small student, a folder of videos, and the command line run in this process, since there are many cases."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sampled import ROOT, small_params, true_clips, write_samples
from students import save_student

from hiar import cli

PROMPT = "a red disc moves left"


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; tests copy what they damage."""
    folder = tmp_path_factory.mktemp("cases") / "student"
    save_student(folder)
    return folder


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three captioned videos with a manifest; tests copy what they damage."""
    folder = tmp_path_factory.mktemp("cases") / "videos"
    params = small_params()
    write_samples(folder, *true_clips(params, seed=0, frames=10), params)
    return folder


@pytest.fixture
def project(tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands run, with params.yaml and videos/ in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(samples, folder / "videos")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HIAR_TRACKING", "off")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in the project and returns its output."""

    def run(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["hiar", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert ended.value.code == code, err
        return err if code else out

    return run


@pytest.fixture
def mistake(run: Callable[..., str], project: Path) -> Callable[..., str]:
    """Runs a command that is refused, checks that no file has changed, and returns the error line."""

    def mistake(*arguments: object) -> str:
        before = snapshot(project)
        # other lines come from before the error: the plan of a walk, and progress
        lines = [line for line in run(*arguments, code=2).splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, lines
        assert snapshot(project) == before
        return lines[0].removeprefix("error: ")

    return mistake


def snapshot(folder: Path) -> dict[str, object]:
    """The contents of a folder: bytes of files and targets of links, without unfinished work."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if ".partial" in name:
            continue
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = path.stat().st_mode
    return found
