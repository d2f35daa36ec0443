"""Self-rollout distillation: the student learns on videos it generated itself, as it will generate them (Sec. 3.3).

The real score is the teacher; the fake score, or critic, follows the student's samples by flow matching; their
difference is the gradient of DMD. A variant may add the forward-KL regulariser.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from hiar.config import Distill, ForwardKL, Schedule, Variant, Video
from hiar.grid import make_grid
from hiar.losses.dmd import dmd_loss, score_difference
from hiar.losses.flow import flow_matching, stratified_sigmas
from hiar.losses.forward_kl import forward_kl
from hiar.models.attention import Bidirectional, BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import generate
from hiar.schedule import step_sigmas
from hiar.training.role import Role, update

Metrics = dict[str, float]


@dataclass(frozen=True)
class Distillation:
    """The roles of distillation and what rules them.

    Text embeddings are (B, words, dim), ``no_text`` (1, words, dim).
    """

    student: Role
    critic: Role
    teacher: Denoiser
    no_text: Tensor
    block_shape: tuple[int, int, int, int]  # (C, k, h, w)
    settings: Distill
    variant: Variant
    video: Video
    schedule: Schedule
    sigma_floor: float
    accelerator: Accelerator


def self_rollout(job: Distillation, text: Tensor, seed: int, samples: range, exit_step: int, learn: bool) -> Tensor:
    """Roll the student out up to ``exit_step``, with gradients there if it is to ``learn``.

    Returns the training windows of all videos, (B * windows, C, F, h, w), sample by sample.
    """
    student, video, variant = cast(Denoiser, job.student.module), job.video, job.variant
    blocks = job.settings.windows * video.frames // video.block
    # Steps behind the exit change nothing before it, except where they leave its context: shared passes do them all.
    steps = job.schedule.student_steps if variant.context == "shared" else exit_step + 1
    grid = make_grid(
        variant.order,
        variant.context,
        blocks=blocks,
        steps=steps,
        window=video.window_blocks,
        sinks=video.sink_blocks,
    )
    sigmas = step_sigmas(job.schedule.student_steps, job.schedule.student_shift)
    rollout = Rollout(grid, sigmas, job.block_shape, job.schedule.renoise, seed, samples, text)
    with job.accelerator.autocast():
        grad_step = exit_step if learn else None
        latents = generate(student, rollout, variant.order, grad_step=grad_step, exit_step=exit_step)
    return latents.unflatten(2, (-1, video.frames)).transpose(1, 2).flatten(0, 1)


def student_step(
    job: Distillation,
    windows: Tensor,
    text: Tensor,
    pairs: tuple[Tensor, Tensor, Tensor] | None,
    random: torch.Generator,
    step: int,
) -> Metrics:
    """One generator update: DMD on ``windows`` (B, C, F, h, w), plus the regulariser on teacher ``pairs``.

    pairs: states (B, S + 1, C, F, h, w), their sigmas (S + 1,) and text; needed when the variant has a forward_kl.
    """
    sigma = stratified_sigmas(len(windows), job.schedule.teacher_shift, random).to(windows)
    noise = torch.randn(windows.shape, generator=random).to(windows)
    critic = cast(Denoiser, job.critic.module)
    no_text = job.no_text.expand_as(text)
    with job.accelerator.autocast():
        gradient = score_difference(job.teacher, critic, windows, noise, sigma, text, no_text, job.settings.guidance)
    loss = dmd_loss(windows, gradient)
    metrics = {"dmd": gradient.square().mean().item()}
    if job.variant.forward_kl and pairs:
        with job.accelerator.autocast():
            regulariser = forward_kl_loss(job, job.variant.forward_kl, *pairs)
        loss = loss + job.variant.forward_kl.weight * regulariser
        metrics["forward_kl"] = regulariser.item()
    job.accelerator.backward(loss)
    metrics["student_grad_norm"] = update(job.student, step, job.accelerator)
    return metrics


def forward_kl_loss(job: Distillation, spec: ForwardKL, states: Tensor, sigmas: Tensor, text: Tensor) -> Tensor:
    """The regulariser with the attention its settings ask for (Eq. 10-11)."""
    video = job.video
    attention = Bidirectional() if spec.attention == "bidirectional" else BlockCausal(video.block, video.window_blocks)
    return forward_kl(cast(Denoiser, job.student.module), states, sigmas, spec.steps, text, attention)


def critic_step(job: Distillation, windows: Tensor, text: Tensor, random: torch.Generator, step: int) -> Metrics:
    """One critic update: flow matching on the student's ``windows`` (B, C, F, h, w)."""
    sigma = stratified_sigmas(len(windows), job.schedule.teacher_shift, random).to(windows)
    noise = torch.randn(windows.shape, generator=random).to(windows)
    critic = cast(Denoiser, job.critic.module)
    with job.accelerator.autocast():
        loss = flow_matching(critic, windows, noise, sigma, text, Bidirectional(), job.sigma_floor)
    job.accelerator.backward(loss)
    norm = update(job.critic, step, job.accelerator)
    return {"critic": loss.item(), "critic_grad_norm": norm}
