"""The causal teacher: flow matching of blocks given clean earlier ones, from the bidirectional teacher's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hiar.config import CausalTeacher, TeacherForcing, Training
from hiar.io.shards import read_shard, write_shard
from hiar.losses.flow import bell_weights, stratified_sigmas
from hiar.losses.teacher_forcing import forced_flow_matching
from hiar.models.attention import TeacherForced
from hiar.models.denoiser import Denoiser
from hiar.models.generator import clone
from hiar.noise import stream
from hiar.stages.inits.adopted import bring_in
from hiar.stages.inits.job import Clean, Job, LossAt, Trained, fit
from hiar.stages.roles import new_role
from hiar.training.loop import Log
from hiar.training.role import kept_weights
from hiar.worlds.interface import TRANSFORMER

CAUSAL_TEACHER = ".causal_teacher"  # scratch folder of stages that train further from it
WEIGHTS = "weights.safetensors"  # of a fully trained causal teacher


def make(job: Job, spec: TeacherForcing) -> Trained:
    """The causal teacher itself as the student: it then takes a student's few steps, for which it was not trained."""
    return _train(job, "init", spec, spec.training)


def causal_teacher(job: Job, spec: CausalTeacher) -> Denoiser:
    """The causal teacher, frozen, unsharded in every process: trained before anything else, or adopted."""
    folder, ranks = job.work.folder / CAUSAL_TEACHER, job.work.ranks
    made = folder / WEIGHTS
    if spec.training is None:
        with ranks.agreed():
            if ranks.leads:
                bring_in(job.work, spec, "init.teacher", folder)
        transformer = job.teacher.world.load_transformer(folder / TRANSFORMER)
        adopted = Denoiser(transformer, job.teacher.card.prediction, job.teacher.card.coordinates)
        return adopted.to(job.device).eval().requires_grad_(False)
    if ranks.told(made.exists()):
        weights = read_shard(made)
    else:
        log = _Prefixed(job.work.run, "causal_teacher")
        weights = dict(_train(job, "init: causal teacher", spec, spec.training, folder, log).weights)
        if ranks.leads:
            write_shard(made, weights, {})
    teacher = clone(job.teacher.denoiser).eval().requires_grad_(False).to(job.device)
    teacher.load_state_dict(weights)
    return teacher


def _train(
    job: Job,
    name: str,
    spec: TeacherForcing | CausalTeacher,
    training: Training,
    folder: Path | None = None,
    log: Log | None = None,
) -> Trained:
    params, video, shift = job.params, job.params.video, job.params.schedule.teacher_shift
    student = clone(job.teacher.denoiser).checkpoint(params.runtime.checkpointing).to(job.device)
    role = new_role(job.work, student, training.optimizer, training.steps)
    attention, blocks = TeacherForced(video.block, video.window_blocks), video.frames // video.block

    def draw(step: int) -> LossAt:
        random = stream("causal teacher batch", job.seed, step=step)
        clean = Clean.drawn(job, random, training.batch, "causal teacher noise", step)
        # As for the bidirectional teacher: guidance needs its prediction without a caption.
        dropped = random.random(training.batch) < params.teacher.caption_dropout
        sigmas = stratified_sigmas(training.batch * blocks, shift, random)
        sigmas = sigmas.view(training.batch, blocks).to(job.device)

        def loss_at(part: range) -> Tensor:
            own = slice(part.start, part.stop)
            x0, noise, captions = clean.at(part)
            text = job.teacher.embed(
                ["" if drop else caption for drop, caption in zip(dropped[own], captions, strict=True)]
            )
            sigma = sigmas[own]
            weights = bell_weights(sigma, shift) if spec.weighting == "bell" else None
            with job.work.accelerator.autocast():
                return forced_flow_matching(student, x0, noise, sigma, text, attention, spec.sigma_floor, weights)

        return loss_at

    curve = fit(job, name, role, training, draw, folder, log)
    return Trained(kept_weights(role), curve)


@dataclass(frozen=True)
class _Prefixed:
    """Logs metrics under a prefix that distinguishes them from those of the stage's last training."""

    run: Log
    prefix: str

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(step, {f"{self.prefix}_{name}": value for name, value in metrics.items()})
