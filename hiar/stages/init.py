"""Stage init: the causal student, regressed from the teacher's weights on its ODE trajectories (Sec. 4.1)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from hiar.config import Params
from hiar.losses.regression import block_levels, ode_regression
from hiar.models.attention import BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.models.generator import Generator, clone, load_generator
from hiar.noise import stream
from hiar.stages.cards import trained_card
from hiar.stages.common import Paths, stage, tail_mean, write_curve, write_metrics
from hiar.stages.pairs import load_pairs
from hiar.training.loop import Metrics, train
from hiar.training.role import kept, make_role, update


def run(params: Params, workspace: Path, seed: int, restart_from: Path | None = None) -> None:
    """Write artifacts/seed-S/init; its metric is the mean loss of the last tenth of training."""
    paths = Paths(workspace, seed)
    parents = {"teacher": (paths.teacher, "checkpoint"), "pairs": (paths.pairs, "pairs")}
    with stage("init", params, workspace, paths.init, seed=seed, parents=parents, restart=restart_from) as work:
        training, device, video = params.init.training, work.accelerator.device, params.video
        teacher = load_generator(paths.teacher).to(device)
        pairs = load_pairs(paths.pairs)
        sigmas = pairs.sigmas.to(device)
        student = clone(teacher.denoiser).checkpoint(params.runtime.checkpointing)
        role = make_role(student, training.optimizer, training.steps)
        attention = BlockCausal(video.block, video.window_blocks)

        def train_step(step: int) -> Metrics:
            random = stream("init batch", seed, step=step)
            chosen = torch.from_numpy(random.integers(len(pairs.states), size=training.batch))
            levels = block_levels(training.batch, video.frames // video.block, len(sigmas), random).to(device)
            states = pairs.states[chosen].to(device)
            text = teacher.embed([pairs.captions[i] for i in chosen])
            with work.accelerator.autocast():
                loss = ode_regression(student, states, sigmas, levels, text, attention, params.init.sigma_floor)
            work.accelerator.backward(loss)
            norm = update(role, step, work.accelerator)
            return {"loss": loss.item(), "grad_norm": norm}

        curve = train(
            "init",
            training.steps,
            train_step,
            {"student": role},
            work.training,
            work.run,
            checkpoint_minutes=params.runtime.checkpoint_minutes,
        )
        card = trained_card(teacher.card, params, stage="init")
        averaged = cast(Denoiser, kept(role))
        Generator(card, averaged, teacher.text, teacher.codec).save(work.folder)
        write_metrics(workspace, f"seed-{seed}/init", {"loss": tail_mean(curve, "loss")})
        write_curve(workspace, f"seed-{seed}/init", curve)
        work.finish("checkpoint")
