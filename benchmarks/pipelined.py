"""Pipelines of processes that stay alive, so that their walks can be interleaved with those of one process.

As in `hiar.rollout.pipeline`, process r of R walks its share of the steps, and process R has the codec. They use no
core while other walks are measured.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from benchmarks.presets import PRESETS, Setup, build, map_weights
from benchmarks.probe import Probe
from benchmarks.timing import Timing, now
from benchmarks.walks import Walk
from hiar.models.compiled import compiled
from hiar.models.fp8 import in_fp8
from hiar.models.kernels import using
from hiar.models.pixels import to_frames
from hiar.rollout.links import Links
from hiar.rollout.messages import Messages
from hiar.rollout.pipeline import finished_blocks, walk_rank
from hiar.rollout.shared_memory import Neighbours, SharedMemory, line_of

STORE, WEIGHTS = "store", "weights.safetensors"  # where processes find each other, and their weights
STALL_SECONDS = 600.0  # of silence after which a process gives up on its neighbour


@dataclass(frozen=True)
class Task:
    """A walk to carry out."""

    walk: Walk
    blocks: int
    decode: bool


@dataclass(frozen=True)
class Parts:
    """The parts of walks to measure, in two parallel processes that hand blocks on, and a third with the codec."""

    rows: int  # of the largest forward call


@dataclass(frozen=True)
class Place:
    """What a process needs to start."""

    rank: int
    world: int
    neighbours: Neighbours
    folder: Path
    preset: str
    batch: int
    threads: int
    kernel: str | None
    compile_layers: bool
    fp8: bool

    def links(self, ranks: int, device: torch.device) -> Links:
        """Links to its neighbours, in a pipeline of the first ``ranks`` processes and one more."""
        if device.type == "cuda":
            return Messages(self.rank, ranks)
        return SharedMemory(self.rank, ranks, self.neighbours, STALL_SECONDS)


def side_by_side(world: int) -> int:
    """How many of ``world`` processes measure the parts of walks in parallel; one more receives what they deliver."""
    return min(2, world - 1)


class Pipeline:
    """Runs walks in the processes at the other ends of ``pipes``, in the order of their ranks."""

    def __init__(self, pipes: list[Connection]) -> None:
        self.pipes = pipes

    def time_walk(self, walk: Walk, blocks: int, decode: bool) -> Timing:
        """Run a walk; seconds count from the start of the first process's walk."""
        start, *others, (ends, peaks) = self._do(Task(walk, blocks, decode), walk.processes + 1)
        memory = [peak for _, peak in [start, *others, (ends, peaks)] if peak is not None]
        return Timing([end - start[0] for end in ends], max(memory, default=None))

    def parts(self, rows: int) -> list[dict[str, list[float]]]:
        """Seconds of the parts of walks in each of the processes that work side by side, see `Probe.measure`."""
        ranks = side_by_side(len(self.pipes))
        return self._do(Parts(rows), ranks + 1)[:ranks]

    def _do(self, task: Task | Parts, count: int) -> list[Any]:
        for pipe in self.pipes[:count]:
            pipe.send(task)
        return [pipe.recv() for pipe in self.pipes[:count]]


@contextmanager
def pipeline(
    preset: str, setup: Setup, threads: int, processes: int, kernel: str | None, compile_layers: bool = False
) -> Iterator[Pipeline]:
    """Start ``processes`` walkers and one process with the codec; they end with the context.

    They and this process map the same file of weights, as processes that load a checkpoint do.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        save_file(setup.denoiser.state_dict(), Path(folder) / WEIGHTS)
        map_weights(setup, Path(folder) / WEIGHTS)
        pipes, workers = [], []
        with line_of(processes + 1) as line:
            for rank, neighbours in enumerate(line):
                here, there = context.Pipe()
                shape = preset, len(setup.text), threads, kernel, compile_layers, in_fp8(setup.denoiser)
                place = Place(rank, len(line), neighbours, Path(folder), *shape)
                workers.append(context.Process(target=_serve, args=(there, place, setup.device.type), daemon=True))
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


def _serve(pipe: Connection, place: Place, device_type: str) -> None:
    """The main function of a process: build, then carry out tasks until the other end of the pipe is closed."""
    torch.set_num_threads(place.threads)
    device = torch.device(device_type)
    if device_type == "cuda":
        device = torch.device(device_type, place.rank)
        torch.cuda.set_device(device)
        store = f"file://{place.folder / STORE}"
        dist.init_process_group("nccl", init_method=store, rank=place.rank, world_size=place.world)
    setup = build(PRESETS[place.preset](), device, place.batch, weights=False, fp8=place.fp8)
    map_weights(setup, place.folder / WEIGHTS)
    pipe.send(None)
    try:
        with using(place.kernel), compiled(setup.denoiser) if place.compile_layers else nullcontext():
            while True:
                task = pipe.recv()
                links = place.links(
                    side_by_side(place.world) if isinstance(task, Parts) else task.walk.processes, device
                )
                pipe.send(_measure(setup, task, links) if isinstance(task, Parts) else _carry_out(setup, task, links))
    except EOFError:
        if device_type == "cuda":
            dist.destroy_process_group()


@torch.no_grad()
def _carry_out(setup: Setup, task: Task, links: Links) -> tuple[Any, int | None]:
    """(when a walker started, or when each block reached the process with the codec), and the peak GPU memory."""
    device = setup.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = now(device)
    result: Any = start
    rollout = setup.rollout(setup.preset.grid(task.walk, task.blocks))
    if links.rank < links.ranks:
        walk_rank(setup.denoiser, [rollout], links, task.walk.passes)
    else:
        result, decoded = [], setup.codec.decoding()
        for latent in finished_blocks([rollout], links):
            if task.decode:
                to_frames(decoded(latent.float())).cpu()
            result.append(now(device))
    return result, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _measure(setup: Setup, task: Parts, links: Links) -> dict[str, list[float]]:
    """Seconds of the parts of walks; after each, a block is handed on, by the last process to that with the codec."""
    probe = Probe(setup, task.rows)
    block = setup.text.new_zeros(len(setup.text), *setup.preset.shape)
    shapes = [block.shape] * probe.repeats
    if links.rank == links.ranks:
        inbox = links.inbox(shapes, block)
        for _ in shapes:
            inbox.take()
        return {}
    outbox = links.outbox(shapes, block)
    exchanges: dict[str, Callable[[], object]] = {}
    if links.rank:
        exchanges["message"] = links.inbox(shapes, block).take
    exchanges["delivery" if links.rank == links.ranks - 1 else "message"] = lambda: outbox.put(block)
    samples = probe.measure(exchanges)
    outbox.close()
    return samples
