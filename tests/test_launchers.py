"""Environment variables of a launcher: a world of one process is no group, all else is refused in one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT, hiar
from students import save_student
from typer.testing import CliRunner

from hiar.cli.app import app
from hiar.errors import UserError
from hiar.io.launcher import alone, forget, own_place

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
# Of torchrun, Open MPI, MPICH and its relatives, and MVAPICH2.
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the smallest experiment's parameters and a student."""
    folder = tmp_path_factory.mktemp("launchers")
    save_student(folder / "student")
    text = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("steps: 800", "steps: 2").replace("width: 64", "width: 8"))
    return folder


def sample(work: Path, out: str, *options: object, code: int = 0, **settings: str) -> str:
    request = ("sample", "--checkpoint", "student", "--prompt", "a red disc moves left", "--frames", 6, "--out", out)
    return hiar(*request, *options, folder=work, code=code, **settings).stderr


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "RANK = 0, WORLD_SIZE = 2: are set as by a launcher, but there is no MASTER_ADDR",
        ),
        (
            {"RANK": "x"},
            "RANK = 'x': is not a number that a launcher sets; start all processes with torchrun, or unset RANK",
        ),
        ({"RANK": "3", "WORLD_SIZE": "2", **MEETING}, "RANK = 3: WORLD_SIZE = 2, ranks go from 0 to 1; start all"),
        ({"RANK": "1"}, "RANK = 1: there is no WORLD_SIZE, ranks go from 0 to 0; start all processes with torchrun"),
        ({"WORLD_SIZE": "2", **MEETING}, "WORLD_SIZE = 2: there is no RANK beside it; start all processes with"),
        (
            {"RANK": "0", "WORLD_SIZE": "0"},
            "WORLD_SIZE = '0': is not a number that a launcher sets; start all processes",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "one", **MEETING}, "LOCAL_RANK = 'one': is not a number that"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", **MEETING, "MASTER_PORT": "99999"},
            "MASTER_PORT = 99999: is not a port; give",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", **MEETING, "MASTER_PORT": "http"}, "MASTER_PORT = 'http': is not a number"),
    ],
)
def test_variables_that_fit_no_launcher_are_named(work: Path, settings: dict[str, str], line: str) -> None:
    (said,) = sample(work, "refused", code=2, **settings).splitlines()
    assert said.startswith(f"error: {line}")
    assert not list(work.glob("refused*"))


def test_a_world_of_one_is_no_group(work: Path) -> None:
    left = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    sample(work, "alone")
    sample(work, "one", **left)
    assert (work / "one" / "0000.mp4").read_bytes() == (work / "alone" / "0000.mp4").read_bytes()


def test_a_launcher_that_is_not_there_any_more_ends_in_one_line(work: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    (said,) = sample(work, "refused", "--stall-seconds", 1, code=3, **settings).splitlines()
    assert said.startswith("error: process 1 of 1 lost another one, or waited 1 s for it")
    assert not list(work.glob("refused*"))


def test_a_stage_forgets_a_world_of_one_and_refuses_others(work: Path) -> None:
    stage = ("stage", "codec", "--seed", 0)
    for settings, line in (
        ({"RANK": "x"}, "RANK = 'x': is not a number that a launcher sets"),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE = 2: a stage is one process; start it without a launcher, or unset WORLD_SIZE",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE = 4: a stage is one process; start it without"),
    ):
        run = hiar(*stage, folder=work, code=2, HIAR_TRACKING="off", **settings)
        (said,) = run.stderr.splitlines()
        assert said.startswith(f"error: {line}")
        assert not (work / "artifacts").exists()
    left = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "ACCELERATE_USE_FSDP": "true"}
    hiar(*stage, folder=work, HIAR_TRACKING="off", **left)
    assert (work / "artifacts" / "seed-0" / "codec" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("run", "smoke"), "hiar run"),
        (("score", "videos", "--out", "score.json"), "hiar score"),
        (("stream", "--checkpoint", "student", "--prompt", "a red disc", "--out", "v.mp4"), "hiar stream"),
    ],
)
def test_commands_that_are_one_process_do_not_start_as_several(work: Path, command: tuple[str, ...], name: str) -> None:
    settings = {"RANK": "0", "WORLD_SIZE": "2", **MEETING}
    (said,) = hiar(*command, folder=work, code=2, **settings).stderr.splitlines()
    assert said == f"error: WORLD_SIZE = 2: {name} is one process; start it without a launcher, or unset WORLD_SIZE"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("live", "--checkpoint", "student"), "hiar live"),
        (("import", "student.pt", "--base", "base", "--out", "out"), "hiar import"),
        (("import-pairs", "pairs", "--out", "out"), "hiar import-pairs"),
        (("export-pairs", "pairs", "--to", "hiar", "--out", "out"), "hiar export-pairs"),
        (("base", "wan", "--out", "out"), "hiar base"),
        (("export", "student", "--to", "wan", "--out", "out"), "hiar export"),
        (("models", "student"), "hiar models"),
        (("vbench", "score", "videos", "--out", "out"), "hiar vbench score"),
    ],
)
def test_nor_do_those_that_begin_with_files(
    command: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused before they read the files; run in this process, because the cases are many."""
    for variable, value in {"RANK": "0", "WORLD_SIZE": "2", **MEETING}.items():
        monkeypatch.setenv(variable, value)
    said = str(CliRunner().invoke(app, command).exception)
    assert said == f"WORLD_SIZE = 2: {name} is one process; start it without a launcher, or unset WORLD_SIZE"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the given variables of a launcher and removes all others."""

    def set_(**variables: str) -> None:
        forget()
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    for name in (*SIZES, *RANKS, *MEETING):
        monkeypatch.delenv(name, raising=False)  # so that they are removed after the test too
    return set_


def test_the_place_of_a_process_is_what_its_launcher_says(launched: Callable[..., None]) -> None:
    assert own_place() is None
    for port in ("1", "65535"):
        launched(RANK="1", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        assert own_place() == (1, 2)
    for wrong, line in (
        ({"MASTER_PORT": "0"}, "MASTER_PORT = 0: is not a port"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT = 65536: is not a port"),
        ({"RANK": "2"}, "RANK = 2: WORLD_SIZE = 2, ranks go from 0 to 1"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK = 2: WORLD_SIZE = 2, ranks go from 0 to 1"),
        ({"MASTER_ADDR": ""}, "RANK = 1, WORLD_SIZE = 2: are set as by a launcher, but there is no MASTER_ADDR"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE = '9"),
        ({"RANK": "١"}, "RANK = '١': is not a number that a launcher sets"),
    ):
        launched(**{"RANK": "1", "WORLD_SIZE": "2", **MEETING, **wrong})
        with pytest.raises(UserError) as error:
            own_place()
        assert str(error.value).startswith(line)


def test_one_process_is_one_to_every_library(launched: Callable[..., None]) -> None:
    """An earlier launcher's variables are removed, whichever it was; a job of several processes is refused."""
    left = dict.fromkeys(SIZES, "1") | dict.fromkeys(RANKS, "0")
    launched(**left, **MEETING, ACCELERATE_USE_FSDP="true", TORCHELASTIC_RUN_ID="x", OMP_NUM_THREADS="1")
    alone("a stage")
    kept = [name for name in os.environ if name in left or name.startswith(("MASTER_", "ACCELERATE_", "TORCHELASTIC_"))]
    assert kept == []
    assert os.environ["OMP_NUM_THREADS"] == "1"
    for name in SIZES:
        launched(**{name: "2"})
        with pytest.raises(UserError, match=f"^{name} = 2: a stage is one process; start it without a launcher"):
            alone("a stage")
    launched(RANK="1")
    with pytest.raises(UserError, match=r"^RANK = 1: there is no WORLD_SIZE"):
        alone("a stage")
