"""Stage codec: fit the encoder on frames of the world, train the decoder on noisy latents."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from hiar.config import Params
from hiar.models.codec import PatchCodec, decoder_loss, to_video
from hiar.noise import normals, seeded, stream
from hiar.stages.common import FIRST_CLIP, Paths, stage, write_curve, write_metrics
from hiar.training.loop import Metrics, train
from hiar.training.role import kept, make_role, update
from hiar.world.render import clips

FIT_CLIPS = 64  # clips whose patches the encoder's principal components are taken from
HELD_OUT_CLIPS = 32


def run(params: Params, workspace: Path, seed: int, restart_from: Path | None = None) -> None:
    """Write artifacts/seed-S/codec; its metric is the PSNR of held-out clips, in dB."""
    paths = Paths(workspace, seed)
    with stage("codec", params, workspace, paths.codec, seed=seed, parents={}, restart=restart_from) as work:
        spec, training = params.codec, params.codec.training
        device = work.accelerator.device
        codec = new_codec(params, seed).to(device)
        role = make_role(codec, training.optimizer, training.steps)

        def train_step(step: int) -> Metrics:
            # A frame a clip, each of another scene: neighbouring frames would teach the decoder little more.
            first, count = step * training.batch, training.batch
            frames, _ = clips(params.world, seed=seed, first=first, count=count, frames=1)
            video = to_video(frames).to(device)
            latents = codec.encode(video)
            scale = torch.from_numpy(spec.noise * stream("codec batch", seed, step=step).random(count)).float()
            noise = scale.view(-1, 1, 1, 1, 1) * normals(
                "codec noise", seed, range(count), latents.shape[1:], step=step
            )
            loss = decoder_loss(codec, video, noise.to(device))
            work.accelerator.backward(loss)
            norm = update(role, step, work.accelerator)
            return {"loss": loss.item(), "grad_norm": norm}

        curve = train(
            "codec",
            training.steps,
            train_step,
            {"codec": role},
            work.training,
            work.run,
            checkpoint_minutes=params.runtime.checkpoint_minutes,
        )
        codec.load_state_dict(kept(role).state_dict())
        codec.save(work.folder)
        metrics = {"psnr": psnr(codec, held_out(params, seed).to(device))}
        write_metrics(workspace, f"seed-{seed}/codec", metrics)
        write_curve(workspace, f"seed-{seed}/codec", curve)
        work.run.log(training.steps, metrics)
        work.finish("codec")


def new_codec(params: Params, seed: int) -> PatchCodec:
    """A codec with its encoder fitted and its decoder untrained."""
    with seeded("codec weights", seed):
        codec = PatchCodec(params.codec.patch, params.codec.channels, params.codec.width, params.codec.depth)
    frames, _ = clips(params.world, seed=seed, first=0, count=FIT_CLIPS, frames=params.video.frames)
    codec.fit_encoder(to_video(frames).transpose(1, 2).flatten(0, 1))
    return codec


def held_out(params: Params, seed: int) -> Tensor:
    """Clips of scenes no training step sees, as video."""
    first = FIRST_CLIP["held-out"]
    return to_video(clips(params.world, seed=seed, first=first, count=HELD_OUT_CLIPS, frames=params.video.frames)[0])


@torch.no_grad()
def psnr(codec: PatchCodec, video: Tensor) -> float:
    """Peak signal-to-noise ratio of a round trip, dB; pixel values span 2."""
    error = (codec.decode(codec.encode(video)).clamp(-1, 1) - video).square().mean().item()
    return 10 * math.log10(4 / error)
