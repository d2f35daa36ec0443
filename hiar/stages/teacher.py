"""Stage teacher: a bidirectional video model and its text encoder, trained on the world's clips or adopted."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import Tensor, nn

from hiar.config import Params, Prediction
from hiar.losses.flow import flow_matching, stratified_sigmas
from hiar.models.attention import Bidirectional
from hiar.models.card import Card, save_card
from hiar.models.denoiser import Denoiser, build_denoiser
from hiar.models.generator import Generator
from hiar.models.pixels import to_video
from hiar.noise import normals, stream
from hiar.stages.common import Paths, Stage, stage, tail_mean, write_adopted, write_curve, write_metrics
from hiar.stages.roles import new_role
from hiar.training.loop import train
from hiar.training.parallel import Measured, Metrics, deal
from hiar.training.role import kept_weights, learn
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, Text, World, open_world


def run(params: Params, workspace: Path, seed: int, restart_from: Path | None = None) -> None:
    """Write artifacts/seed-S/teacher; its metric is the mean loss of the last tenth of training."""
    paths, world = Paths(workspace, seed), open_world(params.world)
    parents = {"codec": (paths.codec, "codec")}
    with stage(
        "teacher", params, workspace, paths.teacher, seed=seed, parents=parents, restart=restart_from, shared=True
    ) as work:
        if world.base is None:
            _train(work, world, paths.codec, workspace, seed)
        elif work.ranks.leads:
            for part in (TRANSFORMER, TEXT, CODEC):
                world.adopt(part, work.folder / part)
            save_card(work.folder, _card(params, seed, "flow", coordinates=False))
            write_adopted(workspace, f"seed-{seed}/teacher")
        if work.ranks.leads:
            work.finish("checkpoint")


def _train(work: Stage, world: World, codec_folder: Path, workspace: Path, seed: int) -> None:
    params, device = work.params, work.accelerator.device
    model, training = params.model, params.teacher.training
    assert model is not None and training is not None
    parts = deal(training.batch, training.micro_batch, work.ranks)
    codec = world.load_codec(codec_folder).to(device).requires_grad_(False)

    def networks() -> nn.ModuleDict:
        text = world.new_text(model, seed=seed)
        denoiser = build_denoiser(model, codec.channels, seed).checkpoint(params.runtime.checkpointing)
        return nn.ModuleDict({"denoiser": denoiser, "text": cast(nn.Module, text)})

    learning = networks().to(device)
    denoiser, text = cast(Denoiser, learning["denoiser"]), cast(Text, learning["text"])
    role = new_role(work, learning, training.optimizer, training.steps)

    def train_step(step: int) -> Metrics:
        random = stream("teacher batch", seed, step=step)
        dropped = random.random(training.batch) < params.teacher.caption_dropout
        sigmas = stratified_sigmas(training.batch, params.schedule.teacher_shift, random).to(device)

        def loss_of(part: range) -> tuple[Tensor, Measured]:
            own, first = slice(part.start, part.stop), step * training.batch + part.start
            frames, captions = world.clips(seed=seed, first=first, count=len(part), frames=params.video.frames)
            x0 = codec.encode(to_video(frames).to(device))
            captions = ["" if drop else caption for drop, caption in zip(dropped[own].tolist(), captions, strict=True)]
            noise = normals("teacher noise", seed, part, x0.shape[1:], step=step).to(device)
            with work.accelerator.autocast():
                floor, words = params.teacher.sigma_floor, text.encode(captions)
                loss = flow_matching(denoiser, x0, noise, sigmas[own], words, Bidirectional(), floor)
            return loss, {"loss": loss}

        return learn(role, step, parts, loss_of, work.ranks, work.accelerator)

    curve = train(
        "teacher",
        training.steps,
        train_step,
        {"teacher": role},
        work.training,
        work.run,
        checkpoint_minutes=params.runtime.checkpoint_minutes,
        checkpoints_kept=params.runtime.checkpoints_kept,
        checkpoint_milestone=params.runtime.checkpoint_milestone,
        ranks=work.ranks,
    )
    weights = kept_weights(role)
    if not work.ranks.leads:
        return
    made = networks()
    made.load_state_dict(weights)
    card = _card(params, seed, model.prediction, model.coordinates)
    Generator(card, cast(Denoiser, made["denoiser"]), cast(Text, made["text"]), codec).save(work.folder)
    write_metrics(workspace, f"seed-{seed}/teacher", {"loss": tail_mean(curve, "loss")})
    write_curve(workspace, f"seed-{seed}/teacher", curve)


def _card(params: Params, seed: int, prediction: Prediction, coordinates: bool) -> Card:
    return Card(
        stage="teacher",
        variant=None,
        seed=seed,
        walk=None,
        guidance=params.teacher.guidance,
        solver_steps=params.teacher.solver_steps,
        prediction=prediction,
        coordinates=coordinates,
        world=params.world,
        video=params.video,
        schedule=params.schedule,
        conventions=None,
        precision=params.runtime.precision,
    )
