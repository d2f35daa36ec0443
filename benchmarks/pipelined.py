"""Pipelines of processes that stay, so that their walks can be measured in turn with those of one process.

Process r of R walks its share of the steps, process R is the codec's place: what `hiar.rollout.pipeline` does. All
wait without using a core while others are measured.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from benchmarks.presets import PRESETS, Setup, build, map_weights
from benchmarks.timing import Timing, now
from benchmarks.walks import Walk
from hiar.models.codec import to_frames
from hiar.models.kernels import using
from hiar.rollout.pipeline import Inbox, Outbox, finished_blocks, walk_rank

STORE, WEIGHTS = "store", "weights.safetensors"  # where processes find each other, and their weights
MESSAGES = 200  # in a round
APART = 0.001  # seconds between them


@dataclass(frozen=True)
class Task:
    """A walk to carry out; None: messages from process 0 to process 1 and nothing else."""

    walk: Walk | None
    blocks: int
    decode: bool = False


class Pipeline:
    """The processes' ends of pipes; process numbers are ranks."""

    def __init__(self, pipes: list[Connection]) -> None:
        self.pipes = pipes

    def time_walk(self, walk: Walk, blocks: int, decode: bool) -> Timing:
        """Carry out a walk; seconds count from the first process's start."""
        start, *others, (ends, peaks) = self._do(Task(walk, blocks, decode), walk.processes + 1)
        memory = [peak for _, peak in [start, *others] if peak is not None]
        return Timing([end - start[0] for end in ends], max(memory, default=None) if peaks is None else peaks)

    def message(self) -> float:
        """Seconds that a block takes of its sender, and of its receiver once it has arrived: their mean."""
        (puts, _), (takes, _) = self._do(Task(None, MESSAGES), 2)
        return (statistics.median(puts) + statistics.median(takes)) / 2

    def _do(self, task: Task, count: int) -> list[Any]:
        for pipe in self.pipes[:count]:
            pipe.send(task)
        return [pipe.recv() for pipe in self.pipes[:count]]


@contextmanager
def pipeline(preset: str, setup: Setup, threads: int, processes: int) -> Iterator[Pipeline]:
    """Start ``processes`` walkers and a codec's place; they end with the context.

    They and this process map the same weights, as processes that load a checkpoint do.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        save_file(setup.denoiser.state_dict(), Path(folder) / WEIGHTS)
        map_weights(setup, Path(folder) / WEIGHTS)
        pipes, workers = [], []
        for rank in range(processes + 1):
            here, there = context.Pipe()
            place = (there, Path(folder), rank, processes + 1)
            arguments = (*place, preset, len(setup.text), threads, setup.device.type)
            workers.append(context.Process(target=_serve, args=arguments, daemon=True))
            workers[-1].start()
            there.close()
            pipes.append(here)
        try:
            for pipe in pipes:
                pipe.recv()
            yield Pipeline(pipes)
        finally:
            for pipe in pipes:
                pipe.close()
            for worker in workers:
                worker.join()


def _serve(
    pipe: Connection, folder: Path, rank: int, world: int, preset: str, batch: int, threads: int, device_type: str
) -> None:
    """A process's life: build, then carry out tasks until the other end of the pipe is closed."""
    torch.set_num_threads(threads)
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "nccl"
    dist.init_process_group(backend, init_method=f"file://{folder / STORE}", rank=rank, world_size=world)
    setup = build(PRESETS[preset](), device, batch)
    map_weights(setup, folder / WEIGHTS)
    kernel = setup.kernel()
    pipe.send(None)
    try:
        with using(kernel):
            while True:
                pipe.send(_carry_out(setup, pipe.recv(), rank))
    except EOFError:
        dist.destroy_process_group()


@torch.no_grad()
def _carry_out(setup: Setup, task: Task, rank: int) -> tuple[Any, int | None]:
    """(when a walker started, or when each block was finished at the codec's place), and the peak of memory.

    Of messages: what each took.
    """
    device = setup.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = now(device)
    result: Any = start
    if task.walk is None:
        result = _messages(setup, task.blocks, rank)
    else:
        rollout = setup.rollout(setup.preset.grid(task.walk, task.blocks))
        ranks = task.walk.processes
        if rank < ranks:
            walk_rank(setup.denoiser, [rollout], rank, ranks, task.walk.passes)
        else:
            result = []
            for latent in finished_blocks([rollout], ranks):
                if task.decode and setup.codec is not None:
                    to_frames(setup.codec.decode(latent.float())).cpu()
                result.append(now(device))
    return result, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _messages(setup: Setup, count: int, rank: int) -> list[float]:
    """Hand blocks from process 0 to process 1, so far apart that each has arrived when it is taken."""
    block = setup.text.new_zeros(len(setup.text), *setup.preset.shape)
    outbox, inbox = (Outbox(1), None) if rank == 0 else (None, Inbox(0, [block.shape] * count, block))
    if inbox:
        time.sleep(10 * APART)
    seconds = []
    for _ in range(count):
        time.sleep(APART)
        start = now(setup.device)
        if outbox:
            outbox.put(block)
        elif inbox:
            inbox.take()
        seconds.append(now(setup.device) - start)
    if outbox:
        outbox.close()
    return seconds
