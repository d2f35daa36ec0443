"""Self-rollout distillation: the student learns on videos it generated itself, as it will generate them (Sec. 3.3).

The real score is the teacher; the fake score, or critic, follows the student's samples by flow matching; their
difference is the gradient of DMD. A variant may add the forward-KL regulariser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from hiar.config import Distill, ForwardKL, Levels
from hiar.losses.dmd import dmd_loss, score_difference
from hiar.losses.flow import flow_matching, stratified_sigmas
from hiar.losses.forward_kl import forward_kl
from hiar.models.attention import Bidirectional, BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.noise import Purpose, normals, stream
from hiar.training.role import Role, update
from hiar.training.self_rollout import SelfRollout

Metrics = dict[str, float]
# States (N, S + 1, C, F, h, w), their sigmas (S + 1,), and the text (B, words, dim) of those that are asked for.
Pairs = tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Distillation:
    """The roles of distillation and what rules them.

    prompts: text embeddings (B, words, dim) of the samples of these numbers; no_text: (1, words, dim). student_samples,
    critic_samples: numbers from which on samples serve one of the two. pairs: the teacher's trajectories, where the
    variant has a forward_kl. replay: the newest windows and their text, from one update to the next.
    """

    student: Role
    critic: Role
    teacher: Denoiser
    roll_out: SelfRollout
    settings: Distill
    prompts: Callable[[range], Tensor]
    no_text: Tensor
    student_samples: int
    critic_samples: int
    pairs: Pairs | None
    seed: int
    accelerator: Accelerator
    replay: dict[str, Tensor] = field(default_factory=dict)


def distillation_step(job: Distillation, step: int) -> Metrics:
    """One step: a generator update, once the critic is warm, and the critic's updates, whose metrics are means."""
    settings = job.settings
    learns = step >= job.settings.warmup_steps
    metrics: Metrics = {}
    if learns or settings.replay is not None:
        first = job.student_samples + step * settings.batch
        windows, text = _rollouts(job, range(first, first + settings.batch), _exit_step(job, "exit step", step), learns)
        if learns:
            metrics |= student_step(job, windows, text, step - job.settings.warmup_steps)
        if settings.replay is not None:
            remember(job.replay, windows.detach(), text, settings.replay * len(windows))
    numbers = range(step * settings.critic_updates, (step + 1) * settings.critic_updates)
    turns = [critic_step(job, *_critic_batch(job, number), number) for number in numbers]
    return metrics | {name: sum(turn[name] for turn in turns) / len(turns) for name in turns[0]}


def student_step(job: Distillation, windows: Tensor, text: Tensor, number: int) -> Metrics:
    """Generator update ``number``: DMD on ``windows`` (B, C, F, h, w), plus the variant's regulariser."""
    levels = stream("dmd levels", job.seed, step=number)
    sigma = draw_levels(job.settings.levels, len(windows), levels).to(windows)
    noise = normals("dmd noise", job.seed, range(len(windows)), windows.shape[1:], step=number).to(windows)
    critic, no_text = cast(Denoiser, job.critic.module), job.no_text.expand_as(text)
    with job.accelerator.autocast():
        gradient = score_difference(job.teacher, critic, windows, noise, sigma, text, no_text, job.settings.guidance)
    loss = dmd_loss(windows, gradient)
    metrics = {"dmd": gradient.square().mean().item()}
    regulariser = job.roll_out.variant.forward_kl
    if regulariser is not None:
        distance = regulariser_loss(job, regulariser, number)
        loss = loss + regulariser.weight * distance
        metrics["forward_kl"] = distance.item()
    job.accelerator.backward(loss)
    metrics["student_grad_norm"] = update(job.student, number, job.accelerator)
    return metrics


def regulariser_loss(job: Distillation, spec: ForwardKL, number: int) -> Tensor:
    """The forward-KL regulariser of a generator update, on pairs drawn for it (Eq. 10-11)."""
    if job.pairs is None:
        raise ValueError("a variant with forward-KL needs the teacher's pairs")
    states, sigmas, text_of = job.pairs
    # A stream of its own: with or without the regulariser, a variant sees the same prompts and noise.
    drawn = stream("forward-KL pairs", job.seed, step=number).integers(len(states), size=job.settings.batch)
    chosen, video = torch.from_numpy(drawn), job.roll_out.video
    attention = Bidirectional() if spec.attention == "bidirectional" else BlockCausal(video.block, video.window_blocks)
    text = text_of(chosen)
    with job.accelerator.autocast():
        return forward_kl(
            cast(Denoiser, job.student.module),
            states[chosen].to(text.device),
            sigmas.to(text.device),
            spec.steps,
            text,
            attention,
        )


def critic_step(job: Distillation, windows: Tensor, text: Tensor, number: int) -> Metrics:
    """Critic update ``number``: flow matching on the student's ``windows`` (B, C, F, h, w)."""
    levels = stream("critic levels", job.seed, step=number)
    sigma = draw_levels(job.settings.levels, len(windows), levels).to(windows)
    noise = normals("critic noise", job.seed, range(len(windows)), windows.shape[1:], step=number).to(windows)
    critic, floor = cast(Denoiser, job.critic.module), job.settings.critic_floor
    with job.accelerator.autocast():
        loss = flow_matching(critic, windows, noise, sigma, text, Bidirectional(), floor)
    job.accelerator.backward(loss)
    norm = update(job.critic, number, job.accelerator)
    return {"critic": loss.item(), "critic_grad_norm": norm}


def draw_levels(levels: Levels, count: int, random: np.random.Generator) -> Tensor:
    """Noise levels (count,) of a loss, within the bounds of its settings."""
    return stratified_sigmas(count, levels.shift, random).clamp(levels.lowest, levels.highest)


def remember(replay: dict[str, Tensor], windows: Tensor, text: Tensor, size: int) -> None:
    """Add the newest windows and their text to the replay, and forget the oldest beyond ``size``."""
    for name, new in (("windows", windows), ("text", text)):
        known = [replay[name].to(new), new] if name in replay else [new]
        replay[name] = torch.cat(known)[-size:]


def _critic_batch(job: Distillation, number: int) -> tuple[Tensor, Tensor]:
    """Windows and their text for critic update ``number``: out of the replay, or of rollouts made for it."""
    settings = job.settings
    if settings.replay is None:
        count = settings.critic_batch // settings.windows
        first = job.critic_samples + number * count
        return _rollouts(job, range(first, first + count), _exit_step(job, "critic exit step", number), learn=False)
    drawn = stream("critic replay", job.seed, step=number).integers(
        len(job.replay["windows"]), size=settings.critic_batch
    )
    chosen = torch.from_numpy(drawn)
    return job.replay["windows"][chosen], job.replay["text"][chosen]


def _rollouts(job: Distillation, samples: range, exit_step: int, learn: bool) -> tuple[Tensor, Tensor]:
    """Windows (B * windows, C, F, h, w) that the student makes of the samples' prompts, and a text for each."""
    text = job.prompts(samples)
    student = cast(Denoiser, job.student.module)
    with job.accelerator.autocast():
        windows = job.roll_out(student, text, job.seed, samples, exit_step, learn)
    return windows, text.repeat_interleave(job.settings.windows, dim=0)


def _exit_step(job: Distillation, purpose: Purpose, number: int) -> int:
    """The one step, of all samples and blocks, whose estimate of x0 ends a rollout."""
    return int(stream(purpose, job.seed, step=number).integers(job.roll_out.schedule.student_steps))
