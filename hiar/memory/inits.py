"""The updates of each kind of init on imagined networks, as in `hiar.stages.inits` but without the optimisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from hiar.losses.consistency import causal_consistency
from hiar.losses.regression import ode_regression
from hiar.losses.teacher_forcing import forced_flow_matching
from hiar.memory.counting import Counting
from hiar.memory.steps import Sizes, causal
from hiar.models.attention import TeacherForced
from hiar.models.denoiser import Denoiser
from hiar.schedule import step_sigmas


def ode(count: Counting, sizes: Sizes, student: Denoiser) -> None:
    """Regression on trajectories."""
    params, batch = sizes.params, sizes.batch
    x, x0 = torch.zeros(2, *sizes.clips(batch)).unbind()
    sigma, text = torch.ones(batch, sizes.blocks), sizes.text(student.transformer.config, batch)
    with count, count.phase("init"):
        with sizes.autocast():
            loss = ode_regression(student, x, x0, sigma, text, causal(params), floor=1.0)
        loss.backward()


def teacher_forcing(count: Counting, sizes: Sizes, student: Denoiser) -> None:
    """Flow matching given clean blocks: sequences are twice as long."""
    x0, text = torch.zeros(sizes.clips(sizes.batch)), sizes.text(student.transformer.config, sizes.batch)
    sigma = torch.ones(sizes.batch, sizes.blocks)
    with count, count.phase("causal teacher"):
        with sizes.autocast():
            loss = forced_flow_matching(student, x0, torch.zeros_like(x0), sigma, text, _forced(sizes), floor=1.0)
        loss.backward()


def consistency(count: Counting, sizes: Sizes, student: Denoiser, frozen: Denoiser) -> None:
    """Consistency with the average; ``frozen`` stands for it and for the causal teacher."""
    x0, text = torch.zeros(sizes.clips(sizes.batch)), sizes.text(student.transformer.config, sizes.batch)
    levels, sigmas = torch.zeros(sizes.batch, sizes.blocks, dtype=torch.long), step_sigmas(2, 1.0)
    with count, count.phase("init"):
        with sizes.autocast():
            loss = causal_consistency(
                student, frozen, frozen, x0, torch.zeros_like(x0), sigmas, levels, text, text, 2.0, _forced(sizes)
            )
        loss.backward()


class Kind(NamedTuple):
    """The update of a kind that takes the most memory; frozen: whether it involves a causal teacher and an average."""

    update: Callable[..., None]
    frozen: bool = False


KINDS = {
    "ode": Kind(ode),
    "teacher_forcing": Kind(teacher_forcing),
    # That of its teacher, or of a regression given clips; with an adopted teacher and no clips it takes less.
    "causal_ode": Kind(teacher_forcing),
    "consistency": Kind(consistency, frozen=True),
}


def _forced(sizes: Sizes) -> TeacherForced:
    return TeacherForced(sizes.params.video.block, sizes.params.video.window_blocks)
