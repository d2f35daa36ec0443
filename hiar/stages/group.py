"""Several processes as one group: how they find each other, and what they agree on before they work."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hiar.errors import LOST, RunFailed, UserError
from hiar.io.launcher import RENDEZVOUS
from hiar.io.ranks import neighbours
from hiar.io.silence import found_by, heard
from hiar.rollout.links import Links, PeerLost
from hiar.rollout.messages import Messages, talking
from hiar.rollout.shared_memory import SLOTS, SharedMemory


def own_device() -> torch.device:
    """The GPU of this process, or the CPU where there is none. Raises UserError when processes outnumber GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        remedy = f"use at most {count - 1}" if count > 1 else "leave it out"
        raise UserError(f"--processes: each needs its own GPU, and so does decoding; there are {count}; {remedy}")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def group(rank: int, ranks: int, device: torch.device, stall_seconds: float) -> Iterator[Links]:
    """The links to the other processes of the group, for the length of the body, whose end waits for all of them.

    Blocks travel through shared memory if all processes were started here and use the CPU, else by messages.
    Raises RunFailed when another process is gone or silent for ``stall_seconds``.
    """
    place = os.environ.get(RENDEZVOUS)

    def lost(reason: str) -> str:
        return (
            f"process {rank} of {ranks} lost another one, or waited {stall_seconds:g} s for it ({reason}); videos "
            "under way play up to their last block, the same command resumes from the last whole batch"
        )

    try:
        with talking():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                init_method=f"file://{place}" if place else "env://",
                rank=rank,
                world_size=ranks + 1,
                timeout=timedelta(seconds=stall_seconds),
            )
            ending = None
            if device.type == "cpu":
                # A process that is done waits for blocks under way, each of which may take up to stall_seconds.
                ending = dist.new_group(timeout=timedelta(seconds=stall_seconds * (1 + SLOTS * ranks)))
        ends = neighbours() if device.type == "cpu" else None
        with heard(found_by(device), lost):
            yield SharedMemory(rank, ranks, ends, stall_seconds) if ends else Messages(rank, ranks)
            with talking():
                dist.barrier(ending, device_ids=[device.index] if device.type == "cuda" else None)
        with talking():
            dist.destroy_process_group()
    except PeerLost as error:
        raise RunFailed(lost(str(error)), LOST) from error


def check_alike(key: dict[str, Any], device: torch.device, gather: Callable[[Tensor], Tensor] | None = None) -> None:
    """Raise UserError on every rank unless all were started with the same checkpoint, options and code.

    gather(own): the tensors of all ranks, (ranks, *shape); None: the process group gathers them.
    """
    facts = {"checkpoint": key["checkpoint"], "code": key["code"], "command": key}
    digests = {name: hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).digest() for name, fact in facts.items()}
    own = torch.frombuffer(bytearray(b"".join(digests.values())), dtype=torch.uint8).to(device)
    everyone = (gather or _everyones)(own)
    for other, theirs in enumerate(everyone):
        for name, start in zip(digests, range(0, len(own), 32), strict=True):
            if not torch.equal(theirs[start : start + 32], everyone[0][start : start + 32]):
                raise UserError(f"process {other}: {name}: differs from that of process 0; start all with the same one")


def _everyones(own: Tensor) -> Tensor:
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    with talking():
        dist.all_gather(everyone, own)
    return torch.stack(everyone)


def tensor_of(teller: int, tensor: Tensor | None, dimensions: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Broadcast a tensor from process ``teller`` to all; the others pass None."""
    shape = torch.tensor(tensor.shape if tensor is not None else [0] * dimensions, device=device)
    with talking():
        dist.broadcast(shape, teller)
    if tensor is None:
        tensor = torch.empty(tuple(shape.tolist()), dtype=dtype, device=device)
    with talking():
        dist.broadcast(tensor, teller)
    return tensor


def numbers_of(teller: int, numbers: list[int] | None, device: torch.device) -> list[int]:
    """Broadcast numbers from process ``teller`` to all; the others pass None."""
    own = None if numbers is None else torch.tensor(numbers, dtype=torch.long, device=device)
    return tensor_of(teller, own, 1, torch.long, device).tolist()
