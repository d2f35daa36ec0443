"""Stage init: the causal student, regressed from the teacher on its ODE trajectories (Sec. 4.1), or adopted."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from hiar.config import Params
from hiar.io.fingerprints import require_content
from hiar.losses.regression import block_levels, noisy_share, ode_regression
from hiar.models.attention import BlockCausal
from hiar.models.generator import Generator, clone, load_card, load_generator, save_card
from hiar.noise import stream
from hiar.stages.cards import trained_card
from hiar.stages.common import Paths, Stage, stage, tail_mean, write_adopted, write_curve, write_metrics
from hiar.stages.pairs import load_pairs
from hiar.training.loop import Metrics, train
from hiar.training.parallel import accumulate, deal
from hiar.training.role import kept_weights, make_role, update
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, open_world


def run(params: Params, workspace: Path, seed: int, restart_from: Path | None = None) -> None:
    """Write artifacts/seed-S/init; its metric is the mean loss of the last tenth of training, if any."""
    paths = Paths(workspace, seed)
    parents = {"teacher": (paths.teacher, "checkpoint"), "pairs": (paths.pairs, "pairs")}
    with stage(
        "init", params, workspace, paths.init, seed=seed, parents=parents, restart=restart_from, shared=True
    ) as work:
        training, device, video = params.init.training, work.accelerator.device, params.video
        if training is None:
            if work.ranks.leads:
                _adopt(work, paths.teacher, workspace, seed)
            return
        parts = deal(training.batch, training.micro_batch, work.ranks)
        teacher = load_generator(paths.teacher).to(device)
        pairs = load_pairs(paths.pairs)
        sigmas = pairs.sigmas.to(device)
        student = clone(teacher.denoiser).checkpoint(params.runtime.checkpointing)
        role = make_role(student, training.optimizer, training.steps, work.ranks.mesh)
        attention = BlockCausal(video.block, video.window_blocks)

        def train_step(step: int) -> Metrics:
            random = stream("init batch", seed, step=step)
            chosen = torch.from_numpy(random.integers(len(pairs.states), size=training.batch))
            levels = block_levels(training.batch, video.frames // video.block, len(sigmas), random).to(device)
            share = noisy_share(levels, sigmas)

            def loss_of(part: range) -> tuple[Tensor, Metrics]:
                own = slice(part.start, part.stop)
                states = pairs.states[chosen[own]].to(device)
                text, floor = teacher.embed([pairs.captions[i] for i in chosen[own]]), params.init.sigma_floor
                with work.accelerator.autocast():
                    loss = ode_regression(student, states, sigmas, levels[own], text, attention, floor, share)
                return loss, {"loss": loss.item()}

            metrics = accumulate(student, parts, loss_of, work.ranks, work.accelerator)
            metrics["grad_norm"] = update(role, step, work.accelerator)
            return metrics

        curve = train(
            "init",
            training.steps,
            train_step,
            {"student": role},
            work.training,
            work.run,
            checkpoint_minutes=params.runtime.checkpoint_minutes,
            ranks=work.ranks,
        )
        weights = kept_weights(role)
        if not work.ranks.leads:
            return
        teacher.denoiser.load_state_dict(weights)
        card = trained_card(teacher.card, params, stage="init")
        Generator(card, teacher.denoiser, teacher.text, teacher.codec).save(work.folder)
        write_metrics(workspace, f"seed-{seed}/init", {"loss": tail_mean(curve, "loss")})
        write_curve(workspace, f"seed-{seed}/init", curve)
        work.finish("checkpoint")


def _adopt(work: Stage, teacher: Path, workspace: Path, seed: int) -> None:
    """Take somebody else's student for the init, to be used as the experiment says, with the teacher's other parts."""
    params, world, folder = work.params, open_world(work.params.world), work.folder
    source = params.init.source
    assert source is not None
    require_content(source, params.init.source_sha256, "init.source_sha256")
    shutil.rmtree(folder / TRANSFORMER, ignore_errors=True)  # of a start that was interrupted
    world.bring_in(source, params.init.weights, folder / TRANSFORMER)
    for part in (TEXT, CODEC):
        world.adopt(part, folder / part)
    save_card(folder, trained_card(load_card(teacher), params, stage="init"))
    write_adopted(workspace, f"seed-{seed}/init")
    work.finish("checkpoint", source=source.name)
