"""`hiar stage` as several processes: killed, stopped, interrupted, restarted; and what users see."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import environment, hiar
from commands import start as started
from waiting import wait_until

from hiar.io.states import newest

INIT, DISTILL = ("stage", "init", "--seed", 0), ("stage", "distill", "--seed", 0, "--variant", "hiar")
MADE = Path("artifacts", "seed-0")
PATIENCE = 300


@pytest.fixture
def work(smoke: Path, tmp_path: Path) -> Path:
    """A folder with the smoke experiment's teacher, pairs and init; micro-batches that suit two processes."""
    for name in ("teacher", "pairs", "init"):
        shutil.copytree(smoke / MADE / name, tmp_path / MADE / name)
    shutil.copy(smoke / "params.yaml", tmp_path)
    settings(tmp_path, distill={"micro_batch": 1}, runtime={"checkpoint_minutes": 1e-9})
    return tmp_path


def settings(folder: Path, **sections: dict[str, object]) -> None:
    path = folder / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        tree[name] |= values
    path.write_text(yaml.safe_dump(tree, sort_keys=False))


def start(folder: Path, *command: object, **variables: str) -> subprocess.Popen[str]:
    return started(*command, folder=folder, stderr=subprocess.PIPE, **{"HIAR_TRACKING": "off"} | variables)


def steps_done(folder: Path) -> int:
    """The number of steps in the newest state of the distillation."""
    place = newest(folder / MADE / "distill" / "hiar.partial" / ".training")
    return 0 if place is None else int(place.name.removeprefix("state-"))


def wait_for(steps: int, folder: Path, process: subprocess.Popen[str]) -> list[int]:
    """Wait for a state of at least ``steps`` steps; returns the ids of the process's children."""
    wait(lambda: steps_done(folder) >= steps, process)
    return children(process)


def wait(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    def check() -> bool:
        if found := condition():
            return found
        assert process.poll() is None, process.communicate()[1]
        return False

    wait_until(check)


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return [int(number) for number in listed.split()]


def test_batches_that_cannot_be_shared_are_refused_before_any_work(work: Path) -> None:
    for sections, line in (
        (
            {"runtime": {"processes": 3}},
            "runtime.processes = 3: cannot evenly split the batch of init.training",
        ),
        ({"distill": {"micro_batch": 3}}, "distill.micro_batch = 3: must divide batch = 2"),
    ):
        settings(work, **sections)
        (error_line,) = hiar(*DISTILL, folder=work, code=2).stderr.splitlines()
        assert error_line.startswith(f"error: params.yaml: {line}")
        settings(work, distill={"micro_batch": 1}, runtime={"processes": None})
    assert not (work / MADE / "distill").exists()


def test_a_port_in_use_is_named(work: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        meeting = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        (error_line,) = hiar(*INIT, folder=work, code=2, HIAR_TRACKING="off", **meeting).stderr.splitlines()
    assert error_line == f"error: MASTER_PORT = {port}: is in use by another program; give the launcher another port"


def test_a_process_without_its_input_ends_all(work: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(work / "params.yaml", tmp_path / "other")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [start(folder, *INIT, RANK=rank, **meeting) for rank, folder in (("0", work), ("1", work / "other"))]
    first, second = (process.communicate(timeout=PATIENCE)[1] for process in processes)
    assert [process.returncode for process in processes] == [2, 2]
    line = "artifacts/seed-0/teacher/manifest.json: no such file"
    assert first.startswith(f"error: process 1: {line}")
    assert second.startswith(f"error: {line}")
    assert not (work / MADE / "init.partial").exists()


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_processes(work: Path, tmp_path: Path) -> None:
    """Two processes, one, and two, all but the last run killed: equal to one uninterrupted run of two."""
    whole = tmp_path / "whole"
    shutil.copytree(work, whole, ignore=shutil.ignore_patterns("whole"))
    settings(whole, runtime={"processes": 2})
    hiar(*DISTILL, folder=whole, HIAR_TRACKING="off")
    for processes, steps in ((2, 2), (1, 4)):
        settings(work, runtime={"processes": processes})
        run = start(work, *DISTILL)
        ranks = wait_for(steps, work, run)
        os.kill(ranks[1] if processes == 2 else run.pid, signal.SIGKILL)
        lines = run.communicate(timeout=PATIENCE)[1].splitlines()
        if processes == 2:
            assert lines[-1] == "error: process 1 of 2 was killed by SIGKILL; the same command resumes from here"
    settings(work, runtime={"processes": 2})
    hiar(*DISTILL, folder=work, HIAR_TRACKING="off")
    for name in (
        MADE / "distill/hiar/transformer/diffusion_pytorch_model.safetensors",
        "curves/seed-0/distill/hiar.csv",
    ):
        assert (work / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("whom", ["the launcher", "one process"])
def test_sigterm_saves_a_state_of_all_processes_and_ends_them(whom: str, work: Path, tmp_path: Path) -> None:
    """Schedulers send it. Nothing is left running, and the same command continues to the bytes of one process."""
    settings(work, runtime={"processes": 1, "checkpoint_minutes": 60.0}, distill={"steps": 40})
    whole = tmp_path / "whole"
    shutil.copytree(work, whole, ignore=shutil.ignore_patterns("whole"))
    hiar(*DISTILL, folder=whole, HIAR_TRACKING="off")
    settings(work, runtime={"processes": 2, "checkpoint_minutes": 1e-9})
    run = start(work, *DISTILL)
    ranks = wait_for(2, work, run)
    os.kill(run.pid if whom == "the launcher" else ranks[1], signal.SIGTERM)
    stderr = run.communicate(timeout=PATIENCE)[1]
    assert run.returncode == 128 + signal.SIGTERM, stderr
    assert "error" not in stderr
    assert not [number for number in ranks if Path("/proc", str(number)).exists()]
    assert steps_done(work) > 2
    hiar(*DISTILL, folder=work, HIAR_TRACKING="off")
    weights = MADE / "distill/hiar/transformer/diffusion_pytorch_model.safetensors"
    assert (work / weights).read_bytes() == (whole / weights).read_bytes()


def test_samples_of_two_processes_are_those_of_one(smoke: Path, work: Path) -> None:
    """Even when one is killed in the middle and the command is run again."""
    shutil.copytree(smoke / MADE / "distill", work / MADE / "distill")
    settings(work, runtime={"processes": 2}, sample={"batch": 1}, distill={"micro_batch": None})
    command = ("stage", "sample", "--seed", 0, "--model", "distill", "--variant", "hiar")
    made = MADE / "samples" / "distill"
    run = start(work, *command)
    wait(lambda: any((work / made / "hiar.partial").glob("*.mp4")), run)
    os.kill(children(run)[1], signal.SIGKILL)
    assert "process 1 of 2 was killed by SIGKILL" in run.communicate(timeout=PATIENCE)[1]
    hiar(*command, folder=work, HIAR_TRACKING="off")
    settings(work, runtime={"processes": None})
    one = work / "one"
    shutil.copytree(work / MADE / "distill", one / MADE / "distill")
    shutil.copy(work / "params.yaml", one)
    hiar(*command, folder=one, HIAR_TRACKING="off")
    names = {path.name for path in (one / made / "hiar").iterdir()}
    assert len(names) > 6
    for name in names:
        assert (work / made / "hiar" / name).read_bytes() == (one / made / "hiar" / name).read_bytes(), name


@pytest.mark.long
def test_a_stopped_process_ends_all_within_the_timeout(work: Path) -> None:
    settings(work, runtime={"processes": 2, "stall_seconds": 20.0})
    run = start(work, *DISTILL)
    ranks = wait_for(1, work, run)
    os.kill(ranks[1], signal.SIGSTOP)
    lines = run.communicate(timeout=PATIENCE)[1].splitlines()
    assert run.returncode == 1
    assert lines[-1].startswith("error: process 0 of 2 lost another one, or waited 20 s for it")
    assert not [number for number in ranks if Path("/proc", str(number)).exists()]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["causal_ode", "consistency"])
def test_two_processes_make_the_causal_init_of_one(kind: str, work: Path) -> None:
    """Teacher, trajectories and student; with AdamW and one micro-batch per process."""
    optimizer = {
        "adamw": {"lr": 0.002, "betas": [0.9, 0.99], "weight_decay": 0.0},
        "muon": None,
        "warmup": 0,
        "decay": "constant",
        "clip": 1.0,
        "ema": 0.5,
        "ema_from": 0,
    }
    training = {"steps": 3, "batch": 4, "micro_batch": 2, "optimizer": optimizer}
    pairs = {"count": 7, "solver_steps": 4, "guidance": 1.5, "batch": 2, "shard": 3}
    extra = {"causal_ode": {"pairs": pairs, "sigma_floor": 0.5}, "consistency": {"solver_steps": 4, "guidance": 1.5}}
    path = work / "params.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["init"] = {"kind": kind, "teacher": {"training": training, "sigma_floor": 0.5}, "training": training} | extra[
        kind
    ]
    path.write_text(yaml.safe_dump(tree))
    made = []
    for processes in (1, 2):
        shutil.rmtree(work / MADE / "init")
        settings(work, runtime={"processes": processes})
        hiar(*INIT, folder=work, HIAR_TRACKING="off")
        made.append((work / MADE / "init" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes())
    assert made[0] == made[1]


@pytest.mark.long
def test_torchrun_can_start_the_processes_too(work: Path) -> None:
    places = {}
    for name in ("torchrun", "own"):
        shutil.rmtree(work / MADE / "init", ignore_errors=True)
        if name == "own":
            settings(work, runtime={"processes": 2})
            hiar(*INIT, folder=work, HIAR_TRACKING="off")
        else:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            variables = environment() | {"HIAR_TRACKING": "off", "GLOO_SOCKET_IFNAME": "lo"}
            subprocess.run([*command, "-m", "hiar", *map(str, INIT)], cwd=work, env=variables, check=True)
        places[name] = (work / MADE / "init" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert places["torchrun"] == places["own"]


@pytest.mark.long
def test_pairs_of_two_processes_killed_twice_are_those_of_one(work: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    settings(work, pairs={"count": 23, "batch": 2, "shard": 4, "solver_steps": 96})
    shutil.rmtree(work / MADE / "pairs")
    shutil.copytree(work, whole, ignore=shutil.ignore_patterns("whole"))
    hiar("stage", "pairs", "--seed", 0, folder=whole, HIAR_TRACKING="off")
    settings(work, runtime={"processes": 2})
    partial = work / MADE / "pairs.partial"
    for shards in (1, 3):
        run = start(work, "stage", "pairs", "--seed", 0)
        wait(lambda: len([*partial.glob("0*.safetensors")]) >= shards, run)  # noqa: B023 (at once)
        os.kill(children(run)[1], signal.SIGKILL)
        lines = run.communicate(timeout=PATIENCE)[1].splitlines()
        assert lines[-1] == "error: process 1 of 2 was killed by SIGKILL; the same command resumes from here"
        assert partial.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in partial.glob("0*.safetensors")}
    assert 3 <= len(kept) < 6
    hiar("stage", "pairs", "--seed", 0, folder=work, HIAR_TRACKING="off")
    one, two = (
        {path.name: path.read_bytes() for path in sorted((folder / MADE / "pairs").iterdir())}
        for folder in (whole, work)
    )
    assert one == two
    assert len(one) == 6 + 2
    assert {name: (work / MADE / "pairs" / name).stat().st_mtime_ns for name in kept} == kept
