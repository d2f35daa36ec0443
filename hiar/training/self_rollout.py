"""Self-rollouts: videos that the student generates as at inference, with gradients at one step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hiar.config import Conventions, Schedule, Variant, Video
from hiar.contexts import rule_of
from hiar.grid import make_grid
from hiar.models.denoiser import Denoiser
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import generate
from hiar.schedule import student_sigmas


@dataclass(frozen=True)
class SelfRollout:
    """How a student rolls out during training. block_shape: (C, k, h, w)."""

    block_shape: tuple[int, int, int, int]
    windows: int  # training windows that a rollout spans
    variant: Variant
    video: Video
    schedule: Schedule
    conventions: Conventions

    def __call__(
        self,
        student: Denoiser,
        text: Tensor,
        seed: int,
        samples: range,
        exit_step: int,
        learn: bool,
        level: float | None = None,
    ) -> Tensor:
        """Roll the student out up to ``exit_step``, with gradients there if ``learn``.

        text: (B, words, dim). level: of the context, if it is not the variant's own.
        Returns the training windows of all videos, (B * windows, C, F, h, w), sample by sample.
        """
        variant, video, schedule = self.variant, self.video, self.schedule
        # Steps after the exit change nothing before it, except where they write its context.
        grid = make_grid(
            variant.context,
            variant.level if level is None else level,
            blocks=self.windows * video.frames // video.block,
            steps=schedule.student_steps if rule_of(variant.context).left else exit_step + 1,
            window=video.window_blocks,
            sinks=video.sink_blocks,
        )
        sigmas = student_sigmas(schedule)
        rollout = Rollout(
            grid, sigmas, self.block_shape, schedule.renoise, seed, samples, text, conventions=self.conventions
        )
        grad_step = exit_step if learn else None
        latents = generate(student, rollout, variant.order, grad_step=grad_step, exit_step=exit_step)
        return latents.unflatten(2, (-1, video.frames)).transpose(1, 2).flatten(0, 1)
