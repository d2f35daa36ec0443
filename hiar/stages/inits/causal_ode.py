"""Causal ODE initialisation: the regression of `ode`, on trajectories that a causal teacher walks block by block."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from hiar.config import CausalOde, CausalPairs
from hiar.grid import make_grid
from hiar.io.progress import Progress
from hiar.io.shards import StoredRows, complete_shards, shard_path, write_shard
from hiar.models.denoiser import Denoiser
from hiar.noise import normals
from hiar.rollout.ode import causal_ode_states
from hiar.schedule import solver_sigmas, student_sigmas
from hiar.stages.inits.job import Job, Trained
from hiar.stages.inits.ode import of_all_levels, regress
from hiar.stages.inits.teacher_forcing import causal_teacher
from hiar.stages.pairs import Trajectories, check_states, pair_captions

PAIRS = ".pairs"  # scratch: the shards of the causal teacher's trajectories


def make(job: Job, spec: CausalOde) -> Trained:
    """The causal teacher's weights, trained on its trajectories, or without ``spec.pairs`` on those of stage pairs.

    Raises UserError if the latter are at other levels than the student's.
    """
    if spec.pairs is None:
        pairs = of_all_levels(job)  # checked first: a teacher may take long to train
        teacher = causal_teacher(job, spec.teacher)
    else:
        teacher = causal_teacher(job, spec.teacher)
        pairs = _trajectories(job, teacher, spec.pairs)
    return regress(job, teacher, pairs, spec.training, spec.sigma_floor)


def _trajectories(job: Job, teacher: Denoiser, spec: CausalPairs) -> Trajectories:
    """The causal teacher's trajectories, on the disk; complete shards are not made again.

    Each process makes one shard at a time, and all meet after every batch: none waits longer than a batch takes.
    """
    folder, ranks = job.work.folder / PAIRS, job.work.ranks
    folder.mkdir(exist_ok=True)
    whole, shards = set(complete_shards(folder)), -(-spec.count // spec.shard)
    with Progress("init: causal pairs", shards) if ranks.leads else nullcontext() as progress:
        for first in range(0, shards, ranks.size):
            index = first + ranks.rank
            numbers = range(index * spec.shard, min((index + 1) * spec.shard, spec.count))
            made: list[Tensor] = []
            for start in range(0, spec.shard, spec.batch):
                batch = numbers[start : start + spec.batch]
                with ranks.agreed():
                    if batch and index not in whole:
                        made.append(_solve(job, teacher, spec, batch))
                        check_states(made[-1], batch, "init.pairs")
            with ranks.agreed():
                if made:
                    write_shard(shard_path(folder, index), {"states": torch.cat(made)}, {"first": str(numbers.start)})
            if progress is not None:
                progress.advance(min(ranks.size, shards - first))
    pairs = StoredRows(folder, "states", shards=shards)
    return Trajectories(pairs, _levels(job), pair_captions(job.params, job.seed, range(spec.count)))


@torch.no_grad()
def _solve(job: Job, teacher: Denoiser, spec: CausalPairs, numbers: range) -> Tensor:
    """Trajectories ``numbers`` at the student's levels, (len(numbers), S + 1, C, F, h, w), each set by its number."""
    params, video = job.params, job.params.video
    substeps = spec.solver_steps // params.schedule.student_steps
    sigmas = solver_sigmas(_levels(job), substeps, params.schedule.teacher_shift)
    grid = make_grid("finished", blocks=video.frames // video.block, steps=len(sigmas) - 1, window=video.window_blocks)
    channels, height, width = job.teacher.latent_size
    noise = normals("causal pairs noise", job.seed, numbers, (channels, video.frames, height, width))
    text, no_text = job.embed(pair_captions(params, job.seed, numbers))
    with job.teacher.autocast():
        states = causal_ode_states(teacher, noise.to(text), sigmas, text, no_text, spec.guidance, grid)
    return states[:, ::substeps].cpu()


def _levels(job: Job) -> Tensor:
    return student_sigmas(job.params.schedule)
