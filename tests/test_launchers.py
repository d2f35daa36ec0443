"""A launcher's environment variables: a world of one process is no group; invalid ones are refused in one line."""

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
# Of torchrun, Open MPI, MPICH and its derivatives, and MVAPICH2.
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
def test_inconsistent_launcher_variables_are_named(work: Path, settings: dict[str, str], line: str) -> None:
    (error_line,) = sample(work, "refused", code=2, **settings).splitlines()
    assert error_line.startswith(f"error: {line}")
    assert not list(work.glob("refused*"))


def test_a_world_of_one_is_no_group(work: Path) -> None:
    stale = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    sample(work, "alone")
    sample(work, "one", **stale)
    assert (work / "one" / "0000.mp4").read_bytes() == (work / "alone" / "0000.mp4").read_bytes()


def test_a_launcher_that_has_gone_gives_one_error_line(work: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    (error_line,) = sample(work, "refused", "--stall-seconds", 1, code=3, **settings).splitlines()
    assert error_line.startswith("error: process 1 of 1 lost another one, or waited 1 s for it")
    assert not list(work.glob("refused*"))


def test_a_stage_ignores_a_world_of_one_and_refuses_all_others(work: Path) -> None:
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
        (error_line,) = run.stderr.splitlines()
        assert error_line.startswith(f"error: {line}")
        assert not (work / "artifacts").exists()
    stale = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "ACCELERATE_USE_FSDP": "true"}
    hiar(*stage, folder=work, HIAR_TRACKING="off", **stale)
    assert (work / "artifacts" / "seed-0" / "codec" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("run", "smoke"), "hiar run"),
        (("score", "videos", "--out", "score.json"), "hiar score"),
        (("stream", "--checkpoint", "student", "--prompt", "a red disc", "--out", "v.mp4"), "hiar stream"),
    ],
)
def test_single_process_commands_refuse_a_launcher(work: Path, command: tuple[str, ...], name: str) -> None:
    settings = {"RANK": "0", "WORLD_SIZE": "2", **MEETING}
    (error_line,) = hiar(*command, folder=work, code=2, **settings).stderr.splitlines()
    assert (
        error_line == f"error: WORLD_SIZE = 2: {name} is one process; start it without a launcher, or unset WORLD_SIZE"
    )


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
def test_single_process_commands_refuse_a_launcher_before_reading_files(
    command: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run in this process, because there are many cases."""
    for variable, value in {"RANK": "0", "WORLD_SIZE": "2", **MEETING}.items():
        monkeypatch.setenv(variable, value)
    error_line = str(CliRunner().invoke(app, command).exception)
    assert error_line == f"WORLD_SIZE = 2: {name} is one process; start it without a launcher, or unset WORLD_SIZE"


@pytest.fixture
def set_launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the given variables of a launcher and removes all others."""

    def set_(**variables: str) -> None:
        forget()
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    for name in (*SIZES, *RANKS, *MEETING):
        monkeypatch.delenv(name, raising=False)  # so that the test's values are removed after it, too
    return set_


def test_rank_and_world_size_come_from_the_launchers_variables(set_launcher: Callable[..., None]) -> None:
    assert own_place() is None
    for port in ("1", "65535"):
        set_launcher(RANK="1", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
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
        set_launcher(**{"RANK": "1", "WORLD_SIZE": "2", **MEETING, **wrong})
        with pytest.raises(UserError) as error:
            own_place()
        assert str(error.value).startswith(line)


def test_leftover_launcher_variables_are_removed(set_launcher: Callable[..., None]) -> None:
    """An earlier launcher's variables are removed, whichever it was; a job of several processes is refused."""
    stale = dict.fromkeys(SIZES, "1") | dict.fromkeys(RANKS, "0")
    set_launcher(**stale, **MEETING, ACCELERATE_USE_FSDP="true", TORCHELASTIC_RUN_ID="x", OMP_NUM_THREADS="1")
    alone("a stage")
    kept = [
        name for name in os.environ if name in stale or name.startswith(("MASTER_", "ACCELERATE_", "TORCHELASTIC_"))
    ]
    assert kept == []
    assert os.environ["OMP_NUM_THREADS"] == "1"
    for name in SIZES:
        set_launcher(**{name: "2"})
        with pytest.raises(UserError, match=f"^{name} = 2: a stage is one process; start it without a launcher"):
            alone("a stage")
    set_launcher(RANK="1")
    with pytest.raises(UserError, match=r"^RANK = 1: there is no WORLD_SIZE"):
        alone("a stage")
