"""Whichever process of a pipeline dies or hangs, the others end too, with one line, and videos are kept."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, hiar
from safetensors.torch import load_file
from students import save_student
from tiny import relative_error

from .ranks import break_a_rank

RANKS = 2  # plus one that decodes
SILENCE = 20  # seconds: longer than healthy processes take to find each other on busy cores
PATIENT = ("--processes", RANKS, "--stall-seconds", 600)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "student"
    save_student(folder)
    return folder


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), RANKS])
def test_a_killed_process_ends_all(student: Path, tmp_path: Path, rank: int) -> None:
    broken = break_a_rank(student, tmp_path, environment(), rank, RANKS)
    name = "the process that decodes" if rank == RANKS else f"process {rank} of {RANKS}"
    assert broken.errors == [f"error: {name} was killed by SIGKILL; the same command resumes from here"]
    assert broken.code == 1
    assert broken.frames > 0
    assert broken.survivors == []


@pytest.mark.long
@pytest.mark.parametrize("options", [(), pytest.param(PATIENT, marks=pytest.mark.long)])
def test_after_a_kill_while_decoding_the_whole_video_plays(
    student: Path, tmp_path: Path, options: tuple[object, ...]
) -> None:
    """And the command, resumed by one process or by several, ends with the folder of an undisturbed run."""
    frames = 3000
    broken = break_a_rank(student, tmp_path, environment(), RANKS, RANKS, frames=frames, walked=True)
    assert broken.errors == [
        "error: the process that decodes was killed by SIGKILL; the same command resumes from here"
    ]
    assert broken.frames == frames
    assert broken.survivors == []
    request = ("sample", "--checkpoint", student, "--prompt", "a red disc moves left", "--frames", frames)
    hiar(*request, *options, "--out", "out", folder=tmp_path)
    hiar(*request, *PATIENT, "--out", "undisturbed", folder=tmp_path)
    left, right = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "undisturbed")
    )
    assert left == right


@pytest.mark.long
def test_a_process_that_falls_silent_ends_all(student: Path, tmp_path: Path) -> None:
    broken = break_a_rank(student, tmp_path, environment(), 0, RANKS, number=signal.SIGSTOP, stall_seconds=SILENCE)
    assert broken.code == 1
    assert len(broken.errors) == 1
    assert f"lost another one, or waited {SILENCE} s for it" in broken.errors[0]
    assert broken.frames > 0
    assert broken.survivors == []


def test_no_process_outlives_its_launcher(student: Path, tmp_path: Path) -> None:
    broken = break_a_rank(student, tmp_path, environment(), -1, RANKS)
    assert broken.code == -signal.SIGKILL
    assert broken.survivors == []


@pytest.mark.long
def test_several_processes_give_the_videos_of_one(student: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a {color} disc moves left\n" for color in ("red", "green") * 9))
    common = ("sample", "--checkpoint", student, "--prompts", prompts, "--frames", 12, "--save-latents")
    hiar(*common, "--out", "one", folder=tmp_path)
    hiar(*common, "--out", "several", *PATIENT, folder=tmp_path)
    one, several = tmp_path / "one", tmp_path / "several"
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in several.iterdir())
    latents = [load_file(folder / "latents.safetensors")["latents"] for folder in (one, several)]
    assert relative_error(latents[1], latents[0]) < 1e-5
    made = {path: path.stat().st_mtime_ns for path in one.iterdir()}
    hiar(*common, "--out", "one", *PATIENT, folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in one.iterdir()} == made


def test_processes_started_with_other_options_refuse_each_other(student: Path, tmp_path: Path) -> None:
    """Started as by torchrun, on a port, without our launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    common = ("sample", "--checkpoint", student, "--prompt", "a red disc moves left", "--frames", 12, "--out", "out")
    common += PATIENT[2:]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "hiar", *map(str, common), "--seed", str(seed)],
            cwd=tmp_path,
            env=environment() | place | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, seed in enumerate((0, 1))
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert errors == ["error: process 1: command: differs from that of process 0; start all with the same one\n"] * 2
    assert [process.returncode for process in processes] == [2, 2]
    assert list(tmp_path.iterdir()) == []
