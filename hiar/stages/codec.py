"""Stage codec: fit the encoder on frames of the world, train the decoder on noisy latents; or adopt a base's codec."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from hiar.config import Params
from hiar.models.pixels import to_video
from hiar.noise import normals, stream
from hiar.stages.common import Paths, Stage, stage, write_adopted, write_curve, write_metrics
from hiar.training.loop import train
from hiar.training.parallel import Measured, Metrics, deal
from hiar.training.role import kept_weights, learn, make_role
from hiar.worlds.interface import CODEC, FIRST_CLIP, Codec, World, open_world

HELD_OUT_CLIPS = 32


def run(params: Params, workspace: Path, seed: int, restart_from: Path | None = None) -> None:
    """Write artifacts/seed-S/codec; its metric is the PSNR of held-out clips, in dB."""
    paths, world = Paths(workspace, seed), open_world(params.world)
    with stage("codec", params, workspace, paths.codec, seed=seed, parents={}, restart=restart_from) as work:
        if world.base is None:
            _train(work, world, workspace, seed)
        else:
            world.adopt(CODEC, work.folder)
            write_adopted(workspace, f"seed-{seed}/codec")
        work.finish("codec")


def _train(work: Stage, world: World, workspace: Path, seed: int) -> None:
    params = work.params
    spec, device = params.codec, work.accelerator.device
    assert spec is not None
    training = spec.training
    codec = world.new_codec(spec, seed=seed, frames=params.video.frames).to(device)
    role = make_role(cast(nn.Module, codec), training.optimizer, training.steps)

    parts = deal(training.batch, training.micro_batch, work.ranks)

    def train_step(step: int) -> Metrics:
        scales = torch.from_numpy(spec.noise * stream("codec batch", seed, step=step).random(training.batch)).float()

        def loss_of(part: range) -> tuple[Tensor, Measured]:
            # One frame per clip, each of another scene: neighbouring frames would teach the decoder little more.
            first = step * training.batch + part.start
            frames, _ = world.clips(seed=seed, first=first, count=len(part), frames=1)
            video = to_video(frames).to(device)
            scale = scales[part.start : part.stop].view(-1, 1, 1, 1, 1)
            noise = scale * normals("codec noise", seed, part, codec.encode(video).shape[1:], step=step)
            loss = codec.loss(video, noise.to(device))
            return loss, {"loss": loss}

        return learn(role, step, parts, loss_of, work.ranks, work.accelerator)

    curve = train(
        "codec",
        training.steps,
        train_step,
        {"codec": role},
        work.training,
        work.run,
        checkpoint_minutes=params.runtime.checkpoint_minutes,
        checkpoints_kept=params.runtime.checkpoints_kept,
        checkpoint_milestone=params.runtime.checkpoint_milestone,
    )
    codec.load_state_dict(kept_weights(role))
    codec.save(work.folder)
    metrics = {"psnr": psnr(codec, held_out(world, seed, params.video.frames).to(device))}
    write_metrics(workspace, f"seed-{seed}/codec", metrics)
    write_curve(workspace, f"seed-{seed}/codec", curve)
    work.run.log(training.steps, metrics)


def held_out(world: World, seed: int, frames: int) -> Tensor:
    """Clips, as video, of scenes that no training step sees."""
    first = FIRST_CLIP["held-out"]
    return to_video(world.clips(seed=seed, first=first, count=HELD_OUT_CLIPS, frames=frames)[0])


@torch.no_grad()
def psnr(codec: Codec, video: Tensor) -> float:
    """Peak signal-to-noise ratio of a round trip, dB; pixel values span 2."""
    error = (codec.decoding()(codec.encode(video)).clamp(-1, 1) - video).square().mean().item()
    return 10 * math.log10(4 / error)
