"""The process group of one stage: how its processes find each other and communicate."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from hiar.config import Runtime
from hiar.errors import LOST, RunFailed, UserError
from hiar.io.launcher import RENDEZVOUS, forget, own_place
from hiar.io.silence import found_by, heard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Words with which gloo, NCCL and the store report that another process is gone or silent.
PEER = re.compile(r"gloo|nccl|tcpstore|socket|connection|broken pipe|timed out|timeout", re.IGNORECASE)
SAME_SIZE = 1.1  # largest ratio of GPU memories that count as equal: variants of a model differ by some percent
LINE = 1000  # bytes of an error message that are sent to the others
AGENT = "TORCHELASTIC_USE_AGENT_STORE"  # if set, torchrun itself listens at MASTER_PORT


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among those of a stage, and their number; rank 0 leads: it alone writes.

    mesh: the mesh that networks are sharded over; None without sharding. half: whether networks compute in bf16.
    """

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    half: bool = False

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def gather(self, own: Tensor) -> Tensor:
        """All-gather: the tensors of all processes, of the same shape and type, as (ranks, *shape)."""
        if self.mesh is None:
            return own[None]
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(all_of_them, own.contiguous())
        return torch.stack(all_of_them)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, added in the order of ranks, in float64."""
        own = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        return self.gather(own).sum(0).tolist()

    def votes(self, *questions: bool) -> list[int]:
        """For each question, how many processes answer yes."""
        return [int(count) for count in self.sums([float(yes) for yes in questions])]

    def told(self, decision: bool) -> bool:
        """The decision of rank 0, in all processes."""
        return self.votes(decision and self.leads) == [1]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A body of checks: a UserError of one process is raised in all, so that none waits for it."""
        error: UserError | None = None
        try:
            yield
        except UserError as mistake:
            error = mistake
        if self.size > 1:
            line = b"" if error is None else str(error).encode()
            own = torch.frombuffer(bytearray(line[:LINE].ljust(LINE, b"\0")), dtype=torch.uint8)
            for rank, row in enumerate(self.gather(own.to(self.device)).cpu()):
                said = bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore")
                if said and error is None:
                    error = UserError(f"process {rank}: {said}")
        if error is not None:
            raise error

    def together(self, work: Callable[[Callable[[int], None]], None], heard: Callable[[int], None]) -> None:
        """Do work that takes a different time in each process; all return when the last one is done.

        work: gets a function that it calls now and then with the amount done since the last call, so that no process
        waits for longer than between two calls. heard: called each time with the sum over all processes.
        A UserError of one process is raised in all, once the others have finished their work.
        """

        def all_over(done: int, over: bool) -> bool:
            total, finished = self.sums([done, float(over)])
            heard(int(total))
            return finished == self.size

        def beat(done: int) -> None:
            all_over(done, False)

        with self.agreed():
            error: UserError | None = None
            try:
                work(beat)
            except UserError as mistake:
                error = mistake
            while not all_over(0, True):
                pass
            if error is not None:
                raise error

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.mesh is None else self.mesh.device_type)


ALONE = Ranks()


@contextmanager
def joined(runtime: Runtime) -> Iterator[Ranks]:
    """The `Ranks` of this process, in a process group that is open during the body; `ALONE` if there is no group.

    The number of processes comes from a launcher's environment, otherwise from ``runtime.processes``, which can then
    only be 1, a group of one. Raises UserError if it is more, the environment fits no launcher, the port is in use,
    processes outnumber GPUs or GPUs differ in size, and RunFailed when another process is gone, or silent for
    ``runtime.stall_seconds``.
    """
    place = own_place()
    if place is None and runtime.processes is None:
        yield ALONE
        return
    if place is None and runtime.processes != 1:
        raise UserError(
            f"runtime.processes = {runtime.processes}: this is one process; start it with `hiar stage`, which starts "
            "them all, or with torchrun"
        )
    half, remedy = (
        runtime.precision == "bf16",
        "last state; if no process died, raise runtime.stall_seconds in params.yaml",
    )
    with gathered(place or (0, 1), runtime.device, runtime.stall_seconds, remedy, half) as ranks:
        yield ranks


@contextmanager
def gathered(
    place: tuple[int, int], device_asked: str, stall_seconds: float, remedy: str, half: bool = False
) -> Iterator[Ranks]:
    """Like `joined`, with ``place`` = (rank, world size). remedy: the end of the message about a lost process."""
    rank, size = place
    device = _own_device(device_asked)

    def lost(reason: str) -> str:
        return (
            f"process {rank} of {size} lost another one, or waited {stall_seconds:g} s for it ({reason}); the same "
            f"command resumes from the {remedy}"
        )

    try:
        _meet(rank, size, device, stall_seconds)
        ranks = Ranks(rank, size, _mesh(device, size), half)
        if device.type == "cuda":
            check_sizes(ranks, torch.cuda.get_device_properties(device).total_memory)
        with heard(found_by(device) if size > 1 else None, lost):
            yield ranks
        dist.destroy_process_group()
    except (RuntimeError, dist.DistError) as error:
        if size == 1 or not PEER.search(str(error)):
            raise
        raise RunFailed(lost(" ".join(str(error).split())[:200]), LOST) from error


def _meet(rank: int, size: int, device: torch.device, seconds: float) -> None:
    """Open the process group, then remove its variables, so that libraries take this process for a single one."""
    place, backend = os.environ.get(RENDEZVOUS), "nccl" if device.type == "cuda" else "gloo"
    wait = timedelta(seconds=seconds)
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=wait)  # type: ignore[attr-defined]
    else:
        if rank == 0 and not place and AGENT not in os.environ:
            _check_port(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        method = f"file://{place}" if place else "env://"
        dist.init_process_group(backend, init_method=method, rank=rank, world_size=size, timeout=wait)
    forget()


def check_sizes(ranks: Ranks, memory: int) -> None:
    """Raise UserError, in all processes, if their GPUs differ in memory; ``memory``: bytes of this process's GPU.

    Each holds an equal share of the networks and takes as many samples, so the smallest would run out of memory.
    """
    every = ranks.gather(torch.tensor(memory, device=ranks.device)).tolist()
    least, most = min(every), max(every)
    if most > SAME_SIZE * least:
        raise UserError(
            f"process {every.index(least)}: its GPU has {least / 1e9:.3g} GB, that of process {every.index(most)} "
            f"{most / 1e9:.3g} GB, and all get equal shares; choose GPUs of one size (CUDA_VISIBLE_DEVICES)"
        )


def _check_port(address: str, port: int) -> None:
    """Raise UserError if another program listens at this address, as the other ranks would wait for its answer."""
    try:
        socket.create_server((address, port)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"MASTER_PORT = {port}: is in use by another program; give the launcher another port"
            ) from None


def _mesh(device: torch.device, size: int) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (size,))


def _own_device(asked: str) -> torch.device:
    """The GPU of this process, or the CPU. Raises UserError when the processes of this machine outnumber its GPUs."""
    if asked == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        remedy = f"start {count}, with runtime.processes in params.yaml or --copies"
        raise UserError(f"process {number} on this machine: each needs its own GPU, and there are {count}; {remedy}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)
