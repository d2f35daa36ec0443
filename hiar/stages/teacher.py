"""Stage teacher: a bidirectional video model and its text encoder, trained by flow matching on the world's clips."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import nn

from hiar.config import Params
from hiar.losses.flow import flow_matching, stratified_sigmas
from hiar.models.attention import Bidirectional
from hiar.models.codec import PatchCodec, to_video
from hiar.models.denoiser import Denoiser, build_denoiser
from hiar.models.generator import Card, Generator
from hiar.models.text import WordEncoder, build_word_encoder
from hiar.noise import normals, stream
from hiar.stages.common import Paths, stage, tail_mean, write_curve, write_metrics
from hiar.training.loop import Metrics, train
from hiar.training.role import kept, make_role, update
from hiar.world.captions import vocabulary
from hiar.world.render import clips


def run(params: Params, workspace: Path, seed: int, restart_from: Path | None = None) -> None:
    """Write artifacts/seed-S/teacher; its metric is the mean loss of the last tenth of training."""
    paths = Paths(workspace, seed)
    parents = {"codec": (paths.codec, "codec")}
    with stage("teacher", params, workspace, paths.teacher, seed=seed, parents=parents, restart=restart_from) as work:
        training, device = params.teacher.training, work.accelerator.device
        codec = PatchCodec.load(paths.codec).to(device).requires_grad_(False)
        denoiser = build_denoiser(params.model, codec.channels, seed).to(device)
        words, model = vocabulary(params.world), params.model
        text = build_word_encoder(words, model.text_length, model.text_dim, seed).to(device)
        role = make_role(nn.ModuleDict({"denoiser": denoiser, "text": text}), training.optimizer, training.steps)

        def train_step(step: int) -> Metrics:
            frames, captions = clips(
                params.world, seed=seed, first=step * training.batch, count=training.batch, frames=params.video.frames
            )
            x0 = codec.encode(to_video(frames).to(device))
            random = stream("teacher batch", seed, step=step)
            dropped = random.random(len(captions)) < params.teacher.caption_dropout
            captions = ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]
            sigma = stratified_sigmas(len(x0), params.schedule.teacher_shift, random).to(device)
            noise = normals("teacher noise", seed, range(len(x0)), x0.shape[1:], step=step).to(device)
            with work.accelerator.autocast():
                floor = params.teacher.sigma_floor
                loss = flow_matching(denoiser, x0, noise, sigma, text.encode(captions), Bidirectional(), floor)
            work.accelerator.backward(loss)
            norm = update(role, step, work.accelerator)
            return {"loss": loss.item(), "grad_norm": norm}

        curve = train(
            "teacher",
            training.steps,
            train_step,
            {"teacher": role},
            work.training,
            work.run,
            checkpoint_minutes=params.runtime.checkpoint_minutes,
        )
        averaged = cast(nn.ModuleDict, kept(role))
        card = Card(
            stage="teacher",
            variant=None,
            seed=seed,
            walk=None,
            guidance=params.teacher.guidance,
            solver_steps=params.teacher.solver_steps,
            prediction=params.model.prediction,
            coordinates=params.model.coordinates,
            world=params.world,
            video=params.video,
            schedule=params.schedule,
            conventions=None,
            precision=params.runtime.precision,
        )
        average = cast(Denoiser, averaged["denoiser"]), cast(WordEncoder, averaged["text"])
        Generator(card, *average, codec).save(work.folder)
        metrics = {"loss": tail_mean(curve, "loss")}
        write_metrics(workspace, f"seed-{seed}/teacher", metrics)
        write_curve(workspace, f"seed-{seed}/teacher", curve)
        work.finish("checkpoint")
