"""How a training process finds its place, alone or in a group, and its GPU; which error it ends with."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from hiar.config import Runtime
from hiar.errors import RunFailed, UserError
from hiar.io.launcher import forget
from hiar.io.process_group import ALONE, Ranks, _own_device, joined
from hiar.parameters import load_params

RUNTIME = load_params(Path(__file__).parents[2] / "params.yaml").runtime


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    forget()


def runtime(**changes: object) -> Runtime:
    return RUNTIME.model_copy(update={"device": "cpu"} | changes)


def test_a_process_without_a_launcher_is_alone() -> None:
    with joined(runtime()) as ranks:
        assert ranks == ALONE
        assert (ranks.leads, ranks.told(True), ranks.told(False), ranks.votes(True, False)) == (
            True,
            True,
            False,
            [1, 0],
        )
    with (
        pytest.raises(UserError, match=r"^runtime\.processes = 2: this is one process; start it with `hiar stage`"),
        joined(runtime(processes=2)),
    ):
        pass


class WithSlowerPeer(Ranks):
    """One of two processes; the other does five units of work, one between two beats, and is then done."""

    overs: ClassVar[list[float]] = []  # at each beat, whether this process has reported that it is done

    def gather(self, own: Tensor) -> Tensor:
        if own.dtype is torch.uint8:  # an error message
            return torch.stack([own, torch.zeros_like(own)])
        self.overs.append(own[1].item())
        other = [1.0, 0.0] if len(self.overs) <= 5 else [0.0, 1.0]
        return torch.stack([own, own.new_tensor(other)])


@pytest.mark.parametrize("broken", [False, True], ids=["well", "broken"])
def test_a_finished_process_takes_part_until_the_last_one_has_finished(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a process without work never waits longer than between two beats of another, even after an error."""
    monkeypatch.setattr(WithSlowerPeer, "overs", [])
    beats: list[int] = []

    def work(beat: Callable[[int], None]) -> None:
        beat(3)
        if broken:
            raise UserError("video 0004: its latents are not finite")
        beat(3)

    with pytest.raises(UserError, match="video 0004") if broken else nullcontext():
        WithSlowerPeer(0, 2).together(work, beats.append)
    assert beats == ([4, 1, 1, 1, 1, 0] if broken else [4, 4, 1, 1, 1, 0])
    assert WithSlowerPeer.overs == ([0, 1, 1, 1, 1, 1] if broken else [0, 0, 1, 1, 1, 1])


class WithFailedPeers(Ranks):
    """One of three processes; the other two have failed."""

    def gather(self, own: Tensor) -> Tensor:
        others = [torch.frombuffer(bytearray(line.ljust(len(own), b"\0")), dtype=own.dtype) for line in (b"b", b"c")]
        return torch.stack([own, *others])


def test_of_several_errors_a_process_raises_its_own_or_the_first() -> None:
    with pytest.raises(UserError, match=r"^a$"), WithFailedPeers(0, 3).agreed():
        raise UserError("a")
    with pytest.raises(UserError, match=r"^process 1: b$"), WithFailedPeers(0, 3).agreed():
        pass


def test_a_single_process_waits_for_no_other() -> None:
    beats: list[int] = []
    ALONE.together(lambda beat: beat(7), beats.append)
    assert beats == [7, 0]


def test_an_error_in_a_group_of_one_is_not_taken_for_a_lost_process() -> None:
    """Even if its text sounds like one."""
    with pytest.raises(RuntimeError, match="connection of its own"), joined(runtime(processes=1)) as ranks:
        assert (ranks.size, ranks.mesh is None) == (1, False)
        raise RuntimeError("connection of its own")
    torch.distributed.destroy_process_group()


def test_a_launchers_variables_are_hidden_from_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "ACCELERATE_USE_FSDP": "true"}.items():
        monkeypatch.setenv(name, value)
    with joined(runtime(processes=1)):
        assert not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP"} & os.environ.keys()


def test_a_process_whose_peers_are_missing_ends_with_exit_code_3(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    # A failed meeting uses up a name. Later groups would have other names than those that DTensor's caches hold.
    monkeypatch.setattr("torch.distributed.distributed_c10d._group_count", 0)
    with (
        pytest.raises(RunFailed, match=r"^process 1 of 2 lost another one, or waited 1 s for it \(") as lost,
        joined(runtime(stall_seconds=1.0)),
    ):
        pass
    assert lost.value.exit_code == 3
    assert str(lost.value).endswith("; if no process died, raise runtime.stall_seconds in params.yaml")


def test_a_port_of_another_program_is_reported_by_the_process_that_should_listen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"^MASTER_PORT = {port}: is in use by another program"), joined(runtime()):
            pass


def test_each_process_has_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert _own_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert _own_device("cuda") == torch.device("cuda", 1)
    assert _own_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        UserError, match=r"^process 2 on this machine: each needs its own GPU, and there are 2; start 2"
    ):
        _own_device("auto")
    assert chosen == [0, 1]
