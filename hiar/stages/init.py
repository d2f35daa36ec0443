"""Stage init: the causal student before distillation, made as ``init.kind`` says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hiar.config import Adopted, Params
from hiar.models.card import load_card, save_card
from hiar.models.generator import Generator, load_generator
from hiar.stages.cards import trained_card
from hiar.stages.common import Paths, Stage, stage, tail_mean, write_adopted, write_curve, write_metrics
from hiar.stages.inits import causal_ode, consistency, ode, teacher_forcing
from hiar.stages.inits.adopted import bring_in
from hiar.stages.inits.job import Job, Trained
from hiar.stages.solved_pairs import open_pairs
from hiar.training.parallel import deal
from hiar.worlds.interface import CODEC, TEXT, open_world

# How each kind is trained, from its section of params.yaml: a further kind is a line here, a module and a section.
KINDS: dict[str, Callable[[Job, Any], Trained]] = {
    "ode": ode.make,
    "teacher_forcing": teacher_forcing.make,
    "causal_ode": causal_ode.make,
    "consistency": consistency.make,
}


def run(params: Params, workspace: Path, seed: int, restart_from: Path | None = None) -> None:
    """Write artifacts/seed-S/init; its metric is the mean loss of the last tenth of training, if any."""
    paths, spec = Paths(workspace, seed), params.init
    parents = {"teacher": (paths.teacher, "checkpoint"), "pairs": (paths.pairs, "pairs")}
    with stage(
        "init", params, workspace, paths.init, seed=seed, parents=parents, restart=restart_from, shared=True
    ) as work:
        if isinstance(spec, Adopted):
            if work.ranks.leads:
                _adopt(work, spec, paths.teacher, workspace, seed)
            return
        for training in spec.trainings.values():  # checked before the first of them begins
            deal(training.batch, training.micro_batch, work.ranks)
        teacher, pairs = load_generator(paths.teacher), open_pairs(params, workspace, seed, work.accelerator.device)
        teacher.text.to(work.accelerator.device)
        teacher.prepare(pairs.captions)  # before other networks are on the device
        teacher.codec.to(work.accelerator.device)  # not the denoiser: copies of it are trained
        made = KINDS[spec.kind](Job(work, seed, teacher, pairs), spec)
        if not work.ranks.leads:
            return
        teacher.denoiser.load_state_dict(made.weights)
        card = trained_card(teacher.card, params, stage="init")
        Generator(card, teacher.denoiser, teacher.text, teacher.codec).save(work.folder)
        write_metrics(workspace, f"seed-{seed}/init", {"loss": tail_mean(made.curve, "loss")})
        write_curve(workspace, f"seed-{seed}/init", made.curve)
        work.finish("checkpoint")


def _adopt(work: Stage, spec: Adopted, teacher: Path, workspace: Path, seed: int) -> None:
    """Adopt another project's student as the init, with the experiment's settings and the base's other parts."""
    world, folder = open_world(work.params.world), work.folder
    bring_in(work, spec, "init", folder)
    for part in (TEXT, CODEC):
        world.adopt(part, folder / part)
    save_card(folder, trained_card(load_card(teacher), work.params, stage="init"))
    write_adopted(workspace, f"seed-{seed}/init")
    work.finish("checkpoint", source=spec.source.name)
