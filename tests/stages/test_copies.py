"""`hiar sample --copies`: processes that divide the videos among them make the same ones as a single process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, hiar, start
from ports import free_ports
from students import save_student
from tiny import relative_error
from waiting import wait_until

from hiar.errors import RunFailed, UserError
from hiar.io.artifacts import read_manifest
from hiar.io.shards import read_shard
from hiar.stages.prompted import _share

PROMPTS = [
    "a red disc moves left",
    "a blue disc moves up",
    "a red wide bar moves",
    "a green disc moves",
    "a cyan disc moves",
]
REQUEST = ("sample", "--checkpoint", "student", "--prompts", "prompts.txt", "--frames", 12, "--save-latents")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, prompts, and the videos that one process makes of them."""
    folder = tmp_path_factory.mktemp("copies")
    save_student(folder / "student")
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    hiar(*REQUEST, "--out", "one", folder=folder)
    return folder


def test_two_copies_make_the_videos_of_one_process_even_after_a_kill(folder: Path) -> None:
    run = start(*REQUEST, "--copies", 2, "--out", "two", folder=folder, stderr=subprocess.PIPE)
    latents = folder / "two.partial" / ".latents"
    wait_until(lambda: any(latents.glob("*.safetensors")) or run.poll() is not None)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True).stdout
    os.kill(int(listed.split()[1]), signal.SIGKILL)
    assert "process 1 of 2 was killed by SIGKILL" in run.communicate(timeout=300)[1]
    output = hiar(*REQUEST, "--copies", 2, "--out", "two", folder=folder).stderr
    assert "copies: 2 batch(es) of videos are split over 2 processes" in output
    assert "sample: 60/60 frames" in output
    one, two = folder / "one", folder / "two"
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    for name in ("captions.txt", "prompts.jsonl"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    first, second = (read_shard(place / "latents.safetensors")["latents"] for place in (one, two))
    assert relative_error(second, first) < 1e-5  # not equal, since the batch sizes differ
    facts = [read_manifest(place, "samples") for place in (one, two)]
    assert facts[0] | {"files": None} == facts[1] | {"files": None}


@pytest.mark.parametrize(
    ("options", "variables", "line"),
    [
        (("--copies", 2, "--processes", 2), {}, "--copies: splits the videos, --processes the steps of each; leave"),
        (("--copies", 6), {}, "--copies = 6: each takes at least one video, of 5; use 1 to 5"),
        (("--copies", 2, "--level", 3), {}, "--level = 3: should be 0 to 2"),
        (
            ("--copies", 3),
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "--copies = 3: the launcher has started 2 process(es); give that number",
        ),
    ],
)
def test_impossible_copies_are_refused(
    options: tuple[object, ...], variables: dict[str, str], line: str, folder: Path
) -> None:
    stderr = hiar(*REQUEST, *options, "--out", "out", folder=folder, code=2, **variables).stderr
    assert line in stderr
    assert stderr.count("\n") == 1
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize("started", [1, 3])
def test_a_launcher_must_start_one_process_per_copy(started: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": started, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=rf"^--copies = 2: the launcher has started {started} process"), _share(2, 9.0):
        pass


def test_copies_wait_for_each_other_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy whose neighbour never comes."""
    place = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.raises(RunFailed, match=r"process 0 of 2 lost another one, or waited 1 s for it"), _share(2, 1.0):
        pass


def test_copies_started_with_other_options_refuse_each_other(folder: Path) -> None:
    """Started by a launcher such as torchrun, on machines that may differ."""
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    command = [sys.executable, "-m", "hiar", *map(str, REQUEST), "--copies", "2", "--out", "unlike"]
    runs = [
        subprocess.Popen(
            [*command, "--seed", str(rank)],
            cwd=folder,
            env=environment() | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    lines = [run.communicate(timeout=300)[1].splitlines()[-1] for run in runs]
    assert lines == ["error: process 1: command: differs from that of process 0; start all with the same one"] * 2
    assert [run.returncode for run in runs] == [2, 2]
    assert not list(folder.glob("unlike*"))
