"""The processes of a pipeline, in a module that they can import."""

from __future__ import annotations

import dataclasses
import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import tiny_denoiser

from hiar.config import Context, ContextLevel, Passes
from hiar.grid import make_grid
from hiar.rollout.cell import Rollout
from hiar.rollout.messages import Messages
from hiar.rollout.pipeline import finished_blocks, walk_rank
from hiar.rollout.shared_memory import Neighbours, SharedMemory, line_of
from hiar.schedule import step_sigmas

PATIENCE = 600.0  # seconds that a healthy process may be silent on a busy machine
STEPS, BLOCK, SHAPE = 4, 2, (3, 2, 4, 4)


class Case(NamedTuple):
    """Settings of a walk; given: number of blocks of the clip that is continued."""

    context: Context
    passes: Passes
    sinks: int = 0
    given: int = 0
    level: ContextLevel | None = None


def rollouts(case: Case) -> list[Rollout]:
    """Three batches of prompts, the last smaller, the second with fewer blocks; the window slides."""
    text = torch.randn(5, 5, 8, generator=torch.Generator().manual_seed(2))
    grid = make_grid(case.context, case.level, blocks=7, steps=STEPS, window=3, sinks=case.sinks, given=case.given)
    sigmas = step_sigmas(STEPS, 5.0)
    return [
        Rollout(grid, sigmas, SHAPE, "sde", 7, range(2), text[:2]),
        Rollout(dataclasses.replace(grid, blocks=5), sigmas, SHAPE, "euler", 7, range(2, 4), text[2:4]),
        Rollout(grid, sigmas, SHAPE, "sde", 7, range(4, 5), text[4:]),
    ]


def clips(case: Case) -> list[torch.Tensor | None]:
    """The clip that each rollout continues, or None."""
    if not case.given:
        return [None] * 3
    random = torch.Generator().manual_seed(3)
    channels, block, *size = SHAPE
    return [torch.randn(videos, channels, case.given * block, *size, generator=random) for videos in (2, 2, 1)]


def run_rank(rank: int, ranks: int, neighbours: Neighbours | None, folder: str, cases: list[Case]) -> None:
    """Run one rank of a pipeline on tiny rollouts; the last rank, the codec's, writes the blocks that arrive."""
    torch.set_num_threads(1)
    init = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo", init_method=init, rank=rank, world_size=ranks + 1, timeout=timedelta(seconds=PATIENCE)
    )
    links = SharedMemory(rank, ranks, neighbours, PATIENCE) if neighbours else Messages(rank, ranks)
    for number, case in enumerate(cases):
        if rank < ranks:
            walk_rank(tiny_denoiser(), rollouts(case), links, case.passes, clips(case))
        else:
            blocks = list(finished_blocks(rollouts(case), links))
            save_file({f"{i:03d}": block for i, block in enumerate(blocks)}, Path(folder) / f"{number}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(ranks: int, shared: bool, folder: Path, cases: list[Case]) -> None:
    """Run all ranks of a pipeline as processes; shared: blocks are passed through shared memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hiar.rollout.pipeline"])  # once for all of them
    with line_of(ranks + 1) as line:
        processes = [
            context.Process(target=run_rank, args=(rank, ranks, ends if shared else None, str(folder), cases))
            for rank, ends in enumerate(line)
        ]
        for process in processes:
            process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
