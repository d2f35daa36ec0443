"""What all kinds of init share: their inputs, and the training of one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hiar.config import Params, Training
from hiar.models.generator import Generator
from hiar.noise import Purpose, normals
from hiar.stages.cards import trained_card
from hiar.stages.common import Stage
from hiar.stages.pairs import Trajectories
from hiar.stages.validation import validation
from hiar.training.loop import Log, train
from hiar.training.parallel import Measured, Metrics, deal
from hiar.training.role import Role, learn

# The mean loss of the samples at these places of the batch, with what was drawn for one step.
LossAt = Callable[[range], Tensor]


@dataclass(frozen=True)
class Job:
    """The running stage, the bidirectional teacher, and that teacher's trajectories.

    The teacher's text encoder and codec are on the device. Its denoiser is not: only copies of it are trained there.
    """

    work: Stage
    seed: int
    teacher: Generator
    pairs: Trajectories

    @property
    def params(self) -> Params:
        return self.work.params

    @property
    def device(self) -> torch.device:
        return self.work.accelerator.device

    def embed(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of captions, and as many of the negative prompt, (B, words, dim) each."""
        text = self.teacher.embed(captions)
        return text, self.teacher.embed_nothing().expand_as(text)


@dataclass(frozen=True)
class Trained:
    """The student's weights, unsharded, and the curve of the training that made them."""

    weights: Mapping[str, Tensor]
    curve: list[Metrics]


def fit(
    job: Job,
    name: str,
    role: Role,
    training: Training,
    draw: Callable[[int], LossAt],
    folder: Path | None = None,
    log: Log | None = None,
) -> list[Metrics]:
    """Train ``role`` on the losses that ``draw`` draws for each step; returns the curve.

    folder: where its states are kept, if it is not the training that makes the student; log: likewise, for its metrics.
    """
    ranks, accelerator = job.work.ranks, job.work.accelerator
    parts = deal(training.batch, training.micro_batch, ranks)
    # Only the last training, which makes the student: validation overwrites the teacher's denoiser, unused by then.
    settings = job.params.init.validation if folder is None else None
    card = trained_card(job.teacher.card, job.params, stage="init")
    watch = validation(job.work, settings, replace(job.teacher, card=card), role, training.steps)

    def train_step(step: int) -> Metrics:
        loss_at = draw(step)

        def loss_of(part: range) -> tuple[Tensor, Measured]:
            loss = loss_at(part)
            return loss, {"loss": loss}

        return learn(role, step, parts, loss_of, ranks, accelerator)

    return train(
        name,
        training.steps,
        train_step,
        {"student" if folder is None else "causal teacher": role},  # so that neither takes the other's state
        folder or job.work.training,
        log or job.work.run,
        checkpoint_minutes=job.params.runtime.checkpoint_minutes,
        checkpoints_kept=job.params.runtime.checkpoints_kept,
        checkpoint_milestone=job.params.runtime.checkpoint_milestone,
        ranks=ranks,
        after_step=watch,
        restarts=folder is None,
    )


@dataclass(frozen=True)
class Clean:
    """The clean videos of one training step, from the pairs, with captions and noise."""

    job: Job
    rows: Tensor  # of the pairs, (batch,)
    purpose: Purpose  # of the noise
    step: int

    @classmethod
    def drawn(cls, job: Job, random: np.random.Generator, batch: int, purpose: Purpose, step: int) -> Clean:
        """Draw a batch of them."""
        return cls(job, torch.from_numpy(random.integers(len(job.pairs.states), size=batch)), purpose, step)

    def at(self, part: range) -> tuple[Tensor, Tensor, list[str]]:
        """Latents x0 and noise, (B, C, F, h, w), and captions, at these places of the batch."""
        rows = self.rows[part.start : part.stop]
        x0 = self.job.pairs.clean(rows).to(self.job.device)
        noise = normals(self.purpose, self.job.seed, part, x0.shape[1:], step=self.step).to(x0)
        return x0, noise, [self.job.pairs.captions[row] for row in rows]
