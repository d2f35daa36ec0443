"""A group of processes ends together: finished ones wait for working ones longer than for silent ones."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hiar.errors import RunFailed, UserError
from hiar.io.launcher import RENDEZVOUS
from hiar.stages.group import check_alike, group, own_device

STALL_SECONDS = 8.0  # longer than processes take to find each other on busy cores


def take_part(rank: int, ranks: int, place: str, seconds: float) -> None:
    """A process of a group that works for ``seconds``."""
    os.environ[RENDEZVOUS] = place
    with group(rank, ranks, torch.device("cpu"), STALL_SECONDS):
        time.sleep(seconds)


def run(what: Callable[[int, int, str, float], None], work: list[float], place: Path) -> None:
    """Run one process for each entry of ``work``, which is its seconds of work; all must exit with 0."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hiar.stages.group"])
    processes = [
        context.Process(target=what, args=(rank, len(work) - 1, str(place), seconds))
        for rank, seconds in enumerate(work)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(work)


def test_finished_processes_wait_beyond_the_stall_limit_for_working_ones(tmp_path: Path) -> None:
    run(take_part, [0.0, 1.5 * STALL_SECONDS, 0.0], tmp_path / "place")


def leave(rank: int, ranks: int, place: str, seconds: float) -> None:
    """A process of a group whose last process exits in the middle of its work."""
    os.environ[RENDEZVOUS] = place
    lost = pytest.raises(RunFailed, match=f"^process {rank} of {ranks} lost another one")
    with lost, group(rank, ranks, torch.device("cpu"), STALL_SECONDS):
        if rank == ranks:
            os._exit(0)


def test_a_process_that_waits_for_a_dead_one_fails(tmp_path: Path) -> None:
    run(leave, [0.0, 0.0], tmp_path / "place")


ALIKE = {"checkpoint": "a", "code": "b", "seed": 0, "prompts": ["one", "two"]}
OTHERS = {"checkpoint": {"checkpoint": "c"}, "code": {"code": "c"}, "command": {"seed": 1}}
UNLIKE = {name: ALIKE | other for name, other in OTHERS.items()}


def compare(rank: int, ranks: int, place: str, seconds: float) -> None:
    """A process that compares its options with the others' (the last one's differ), and writes the errors to a file."""
    os.environ[RENDEZVOUS] = place
    errors = {}
    with group(rank, ranks, torch.device("cpu"), STALL_SECONDS):
        for name, theirs in ({"nothing": dict(reversed(ALIKE.items()))} | UNLIKE).items():
            try:
                check_alike(theirs if rank == ranks else ALIKE, torch.device("cpu"))
            except UserError as error:
                errors[name] = str(error)
    Path(f"{place}-{rank}.json").write_text(json.dumps(errors))


def test_every_process_names_the_one_that_was_started_differently(tmp_path: Path) -> None:
    """Another checkpoint, other code or other options; the same options in another order are no difference."""
    run(compare, [0.0, 0.0, 0.0], tmp_path / "place")
    for rank in range(3):
        assert json.loads((tmp_path / f"place-{rank}.json").read_text()) == {
            name: f"process 2: {name}: differs from that of process 0; start all with the same one" for name in UNLIKE
        }


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for count, number, line in (
        (2, 1, None),
        (2, 2, "there are 2; use at most 1"),
        (1, 1, "there are 1; leave it out"),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.setenv("LOCAL_RANK", str(number))
        if line is None:
            assert own_device() == torch.device("cuda", number)
        else:
            with pytest.raises(UserError, match=f"--processes: each needs its own GPU, .*; {line}"):
                own_device()
    assert chosen == [1]
