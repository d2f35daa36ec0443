"""A group of processes ends together: who is done waits for who works, longer than for who is silent."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from hiar.errors import UserError
from hiar.io.launcher import RENDEZVOUS
from hiar.stages.group import group, own_device

STALL_SECONDS = 8.0  # more than processes need to find each other on busy cores


def take_part(rank: int, ranks: int, place: str, seconds: float) -> None:
    """A process of a group, at work for so long."""
    os.environ[RENDEZVOUS] = place
    with group(rank, ranks, torch.device("cpu"), STALL_SECONDS):
        time.sleep(seconds)


def test_who_is_done_waits_for_blocks_that_are_still_under_way(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hiar.stages.group"])
    work = (0.0, 1.5 * STALL_SECONDS, 0.0)
    processes = [
        context.Process(target=take_part, args=(rank, len(work) - 1, str(tmp_path / "place"), seconds))
        for rank, seconds in enumerate(work)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_process_more_than_there_are_gpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for count, number, said in ((2, 1, None), (2, 2, "here are 2; use at most 1"), (1, 1, "here are 1; leave it out")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.setenv("LOCAL_RANK", str(number))
        if said is None:
            assert own_device() == torch.device("cuda", number)
        else:
            with pytest.raises(UserError, match=f"--processes: each takes a GPU, .*; {said}"):
                own_device()
    assert chosen == [1]
