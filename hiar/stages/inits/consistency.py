"""Causal consistency distillation: from any level to the clean end in one forward, without trajectories."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from hiar.config import Consistency
from hiar.losses.consistency import causal_consistency
from hiar.losses.regression import block_levels
from hiar.models.attention import TeacherForced
from hiar.models.denoiser import Denoiser
from hiar.models.generator import clone
from hiar.noise import stream
from hiar.schedule import solver_sigmas, student_sigmas
from hiar.stages.inits.job import Clean, Job, LossAt, Trained, fit
from hiar.stages.inits.teacher_forcing import causal_teacher
from hiar.stages.roles import new_role
from hiar.training.role import kept_weights


def make(job: Job, spec: Consistency) -> Trained:
    """The causal teacher's weights, trained to agree with their own average (EMA) one teacher step further on."""
    video, schedule, training = job.params.video, job.params.schedule, spec.training
    teacher = causal_teacher(job, spec.teacher)
    student = clone(teacher).checkpoint(job.params.runtime.checkpointing)
    role = new_role(job.work, student, training.optimizer, training.steps)
    assert role.average is not None
    average = cast(Denoiser, role.average.module)
    levels = student_sigmas(schedule)
    sigmas = solver_sigmas(levels, spec.solver_steps // schedule.student_steps, schedule.teacher_shift).to(job.device)
    attention, blocks = TeacherForced(video.block, video.window_blocks), video.frames // video.block

    def draw(step: int) -> LossAt:
        random = stream("init batch", job.seed, step=step)
        clean = Clean.drawn(job, random, training.batch, "init noise", step)
        places = block_levels(training.batch, blocks, spec.solver_steps, random).to(job.device)

        def loss_at(part: range) -> Tensor:
            x0, noise, captions = clean.at(part)
            text, no_text = job.embed(captions)
            own = places[part.start : part.stop]
            with job.work.accelerator.autocast():
                return causal_consistency(
                    student, average, teacher, x0, noise, sigmas, own, text, no_text, spec.guidance, attention
                )

        return loss_at

    curve = fit(job, "init", role, training, draw)
    return Trained(kept_weights(role), curve)
