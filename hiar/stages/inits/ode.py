"""ODE initialisation: a causal student regressed from trajectories of a teacher's ODE."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hiar.config import Ode, Training
from hiar.losses.regression import block_levels, forced_regression, noisy_share, ode_regression
from hiar.models.attention import BlockCausal, TeacherForced
from hiar.models.denoiser import Denoiser
from hiar.models.generator import clone
from hiar.noise import stream
from hiar.stages.inits.job import Job, LossAt, Trained, fit
from hiar.stages.pairs import Trajectories, at_levels, levels_needed, require_levels
from hiar.stages.roles import new_role
from hiar.training.role import kept_weights


def make(job: Job, spec: Ode) -> Trained:
    """The bidirectional teacher's weights, trained on its own trajectories, which were solved without clean context."""
    pairs = replace(of_all_levels(job), clips=None)
    return regress(job, job.teacher.denoiser, pairs, spec.training, spec.sigma_floor)


def of_all_levels(job: Job) -> Trajectories:
    """The pairs. Raises UserError if they are at other levels than the student's, as imported ones may be."""
    require_levels(job.params, job.pairs.sigmas, levels_needed(job.params, every=True), str(job.work.parents["pairs"]))
    return job.pairs


def regress(job: Job, start: Denoiser, pairs: Trajectories, training: Training, floor: float) -> Trained:
    """The weights of ``start``, trained to predict the clean ends of trajectories from states at all of their levels.

    A block's context is the states of earlier blocks, each at a level of its own, or earlier clean blocks of its clip.
    """
    video, device, clips = job.params.video, job.device, pairs.clips
    student = clone(start).checkpoint(job.params.runtime.checkpointing).to(device)
    role = new_role(job.work, student, training.optimizer, training.steps)
    causal = BlockCausal(video.block, video.window_blocks)
    forced = TeacherForced(video.block, video.window_blocks)
    shown = len(pairs.sigmas) - (clips is not None)  # without clips, some blocks are clean, as context only

    def draw(step: int) -> LossAt:
        random = stream("init batch", job.seed, step=step)
        chosen = torch.from_numpy(random.integers(len(pairs.states), size=training.batch))
        levels = block_levels(training.batch, video.frames // video.block, shown, random)
        sigma = pairs.sigmas[levels].to(device)
        share = noisy_share(sigma)

        def loss_at(part: range) -> Tensor:
            own = slice(part.start, part.stop)
            x0 = pairs.states[chosen[own], -1].to(device)
            x = at_levels(pairs.states, chosen[own], levels[own], video.block).to(device)
            text = job.teacher.embed([pairs.captions[i] for i in chosen[own]])
            clip = None if clips is None else clips[chosen[own], -1].to(device)
            with job.work.accelerator.autocast():
                if clip is None:
                    return ode_regression(student, x, x0, sigma[own], text, causal, floor, share)
                return forced_regression(student, x, x0, clip, sigma[own], text, forced, floor)

        return loss_at

    curve = fit(job, "init", role, training, draw)
    return Trained(kept_weights(role), curve)
