"""Self-rollout distillation: the student learns on videos that it generates as at inference (Sec. 3.3).

A variant may learn on noised videos of the pairs instead, see `hiar.training.diffusion_forcing`.
The real score is the teacher; the fake score, or critic, follows the student's samples by flow matching; their
difference is the gradient of DMD. A variant may add the forward-KL regulariser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hiar.config import Distill, ForwardKL, Levels
from hiar.io.process_group import ALONE, Ranks
from hiar.losses.dmd import dmd_loss, score_difference
from hiar.losses.flow import flow_matching, stratified_sigmas
from hiar.losses.forward_kl import forward_kl
from hiar.models.attention import Bidirectional, BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.noise import Purpose, normals, stream
from hiar.schedule import student_sigmas
from hiar.training.clips import as_clips, frame_weights
from hiar.training.diffusion_forcing import DiffusionForcing, Pairs
from hiar.training.parallel import Measured, Metrics, deal, rows_of_all
from hiar.training.role import Role, learn
from hiar.training.self_rollout import SelfRollout
from hiar.worlds.interface import Codec

Rollouts = tuple[Tensor, Tensor]  # windows (rollouts * windows, C, F, h, w), and the text of each (.., words, dim)


@dataclass(frozen=True)
class Distillation:
    """The roles of a distillation, its settings and its data.

    prompts: the text embeddings (B, words, dim) of samples, by number; no_text: (1, words, dim). codec: of all
    networks' latents. student_samples, critic_samples: the first sample number of each of the two. pairs: the teacher's
    trajectories, if the variant uses forward_kl or diffusion forcing. replay: the newest windows and their text, kept
    between updates.
    """

    student: Role
    critic: Role
    teacher: Denoiser
    roll_out: SelfRollout
    codec: Codec
    settings: Distill
    prompts: Callable[[range], Tensor]
    no_text: Tensor
    student_samples: int
    critic_samples: int
    pairs: Pairs | None
    seed: int
    accelerator: Accelerator
    ranks: Ranks = ALONE
    replay: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def forcing(self) -> DiffusionForcing | None:
        """Makes windows instead of rollouts, where the variant says so."""
        variant, video = self.roll_out.variant, self.roll_out.video
        if variant.forcing is None:
            return None
        if self.pairs is None:
            raise ValueError("a variant under diffusion forcing needs the teacher's pairs")
        sigmas = student_sigmas(self.roll_out.schedule)
        return DiffusionForcing(self.pairs, sigmas, BlockCausal(video.block, video.window_blocks), self.seed)


def distillation_step(job: Distillation, step: int) -> Metrics:
    """One step: a generator update, once the critic's warm-up is over, and critic updates (metrics are averaged)."""
    settings = job.settings
    learns = step >= job.settings.warmup_steps
    metrics: Metrics = {}
    if learns or settings.replay is not None:
        parts = deal(settings.batch, settings.micro_batch, job.ranks)
        first, exit_step = job.student_samples + step * settings.batch, _exit_step(job, "exit step", step)
        level = _context_level(job, "context level", step)
        made: list[Rollouts] = []

        def roll_out(part: range) -> Rollouts:
            windows, text = _rollouts(job, range(first + part.start, first + part.stop), exit_step, learns, level)
            if settings.replay is not None:
                made.append((windows.detach(), text))
            return windows, text

        if learns:
            metrics |= student_step(job, roll_out, parts, step - settings.warmup_steps)
        else:
            for part in parts:
                roll_out(part)
        if settings.replay is not None:
            windows, text = (rows_of_all(list(rows), job.ranks) for rows in zip(*made, strict=True))
            remember(job.replay, windows, text, settings.replay * len(windows))
    numbers = range(step * settings.critic_updates, (step + 1) * settings.critic_updates)
    turns = [critic_step(job, *_critic_batch(job, number), number) for number in numbers]
    return metrics | {name: sum(turn[name] for turn in turns) / len(turns) for name in turns[0]}


def student_step(job: Distillation, roll_out: Callable[[range], Rollouts], parts: list[range], number: int) -> Metrics:
    """Generator update ``number``: DMD on the student's rollouts, plus the variant's regulariser.

    roll_out(part): windows and text of the rollouts at these indices of the batch. parts: those of this process.
    """
    settings, regulariser = job.settings, job.roll_out.variant.forward_kl
    sigmas = draw_levels(
        settings.levels, settings.batch * settings.windows, stream("dmd levels", job.seed, step=number)
    )

    def loss_of(part: range) -> tuple[Tensor, Measured]:
        # Before anything is held for backward: if no pairs are stored, the teacher solves them here.
        drawn = None if regulariser is None else drawn_pairs(job, regulariser, number, part)
        windows, text = roll_out(part)
        places = _windows_of(part, settings.windows)
        sigma = sigmas[places.start : places.stop].to(windows)
        noise = normals("dmd noise", job.seed, places, windows.shape[1:], step=number).to(windows)
        critic, no_text = cast(Denoiser, job.critic.module), job.no_text.expand_as(text)
        with job.accelerator.autocast():
            gradient = score_difference(job.teacher, critic, windows, noise, sigma, text, no_text, settings.guidance)
        apart = job.forcing is None
        weights = frame_weights(windows, settings.windows, job.roll_out.video.block, job.codec) if apart else None
        loss = dmd_loss(windows, gradient, weights)
        metrics = {"dmd": gradient.square().mean()}
        if regulariser is not None and drawn is not None:
            distance = regulariser_loss(job, regulariser, *drawn)
            loss = loss + regulariser.weight * distance
            metrics["forward_kl"] = distance
        return loss, metrics

    metrics = learn(job.student, number, parts, loss_of, job.ranks, job.accelerator)
    return metrics | {"student_grad_norm": metrics.pop("grad_norm")}


def drawn_pairs(job: Distillation, spec: ForwardKL, number: int, part: range) -> tuple[Tensor, Tensor, Tensor]:
    """A micro-batch for the regulariser: trajectory states, levels and text of pairs drawn for the update."""
    if job.pairs is None:
        raise ValueError("a variant with forward-KL needs the teacher's pairs")
    states, sigmas, text_of, _ = job.pairs
    # A stream of its own: with or without the regulariser, a variant sees the same prompts and noise.
    rows = stream("forward-KL pairs", job.seed, step=number).integers(len(states), size=job.settings.batch)
    chosen = torch.from_numpy(rows[part.start : part.stop])
    text = text_of(chosen)
    return states[chosen, : spec.steps + 1].to(text.device), sigmas.to(text.device), text


def regulariser_loss(job: Distillation, spec: ForwardKL, states: Tensor, sigmas: Tensor, text: Tensor) -> Tensor:
    """The forward-KL regulariser of a generator update, on the result of `drawn_pairs` (Eq. 10-11)."""
    video = job.roll_out.video
    attention = Bidirectional() if spec.attention == "bidirectional" else BlockCausal(video.block, video.window_blocks)
    with job.accelerator.autocast():
        return forward_kl(cast(Denoiser, job.student.module), states, sigmas, spec.steps, text, attention)


def critic_step(job: Distillation, windows_at: Callable[[range], Rollouts], parts: list[range], number: int) -> Metrics:
    """Critic update ``number``: flow matching on the student's windows.

    windows_at(part): windows and text at these indices of the critic's batch. parts: those of this process.
    """
    settings = job.settings
    sigmas = draw_levels(settings.levels, settings.critic_batch, stream("critic levels", job.seed, step=number))
    critic = cast(Denoiser, job.critic.module)

    def loss_of(part: range) -> tuple[Tensor, Measured]:
        windows, text = windows_at(part)
        sigma = sigmas[part.start : part.stop].to(windows)
        noise = normals("critic noise", job.seed, part, windows.shape[1:], step=number).to(windows)
        with job.accelerator.autocast():
            loss = flow_matching(critic, windows, noise, sigma, text, Bidirectional(), settings.critic_floor)
        return loss, {"critic": loss}

    metrics = learn(job.critic, number, parts, loss_of, job.ranks, job.accelerator)
    return metrics | {"critic_grad_norm": metrics.pop("grad_norm")}


def check_batches(settings: Distill, ranks: Ranks) -> None:
    """Raise UserError when processes cannot take equal shares of both batches."""
    deal(settings.batch, settings.micro_batch, ranks)
    _critic_parts(settings, ranks)


def draw_levels(levels: Levels, count: int, random: np.random.Generator) -> Tensor:
    """Noise levels (count,) of a loss, within the bounds of its settings."""
    return stratified_sigmas(count, levels.shift, random).clamp(levels.lowest, levels.highest)


def remember(replay: dict[str, Tensor], windows: Tensor, text: Tensor, size: int) -> None:
    """Add the newest windows and their text to the replay, and forget the oldest beyond ``size``."""
    for name, new in (("windows", windows), ("text", text)):
        known = [replay[name].to(new), new] if name in replay else [new]
        # The memory layout of a restored state: with another one, some processors round convolutions differently.
        replay[name] = torch.cat(known)[-size:].contiguous()


def _critic_batch(job: Distillation, number: int) -> tuple[Callable[[range], Rollouts], list[range]]:
    """Windows and their text for critic update ``number``: from the replay, or from rollouts made for it.

    Returns a function that makes those of a micro-batch, and the micro-batches of this process, as indices of windows.
    """
    settings, replay = job.settings, job.replay
    parts = _critic_parts(settings, job.ranks)
    if settings.replay is None:
        first = job.critic_samples + number * (settings.critic_batch // settings.windows)
        exit_step = _exit_step(job, "critic exit step", number)
        level = _context_level(job, "critic context level", number)

        def fresh(part: range) -> Rollouts:
            start, stop = part.start // settings.windows, part.stop // settings.windows
            return _rollouts(job, range(first + start, first + stop), exit_step, learn=False, level=level)

        return fresh, parts
    drawn = stream("critic replay", job.seed, step=number).integers(len(replay["windows"]), size=settings.critic_batch)

    def known(part: range) -> Rollouts:
        chosen = torch.from_numpy(drawn[part.start : part.stop])
        return replay["windows"][chosen], replay["text"][chosen]

    return known, parts


def _critic_parts(settings: Distill, ranks: Ranks) -> list[range]:
    """The micro-batches of a process, as indices of windows in the critic's batch; fresh rollouts are not split."""
    micro_batch = settings.micro_batch
    if settings.replay is None:
        rollouts = deal(settings.critic_batch // settings.windows, micro_batch, ranks)
        return [_windows_of(part, settings.windows) for part in rollouts]
    return deal(settings.critic_batch, micro_batch and micro_batch * settings.windows, ranks)


def _windows_of(rollouts: range, windows: int) -> range:
    """The indices of the windows that the rollouts at these indices span."""
    return range(rollouts.start * windows, rollouts.stop * windows)


def _rollouts(job: Distillation, samples: range, exit_step: int, learn: bool, level: float | None) -> Rollouts:
    """Windows (B * windows, C, F, h, w) that the student generates from the samples' prompts, and a text for each.

    Under diffusion forcing, as many windows made from the pairs' clean videos.
    """
    student = cast(Denoiser, job.student.module)
    if job.forcing is not None:
        with job.accelerator.autocast():
            return job.forcing(student, _windows_of(samples, job.settings.windows), learn)
    text = job.prompts(samples)
    with job.accelerator.autocast():
        windows = job.roll_out(student, text, job.seed, samples, exit_step, learn, level)
    windows = as_clips(windows, job.settings.windows, job.roll_out.video.block, job.codec)
    return windows, text.repeat_interleave(job.settings.windows, dim=0)


def _exit_step(job: Distillation, purpose: Purpose, number: int) -> int:
    """The exit step, one for all samples and blocks, whose x0 prediction ends a rollout."""
    return int(stream(purpose, job.seed, step=number).integers(job.roll_out.schedule.student_steps))


def _context_level(job: Distillation, purpose: Purpose, number: int) -> float | None:
    """The drawn level of context, one for all samples and steps; None where the variant draws none."""
    drawn = job.roll_out.variant.drawn
    return None if drawn is None else float(stream(purpose, job.seed, step=number).uniform(*drawn))
