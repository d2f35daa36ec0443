"""Workspaces with samples that the world's renderer made, not a model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from hiar.config import Params
from hiar.io.artifacts import write_manifest
from hiar.io.video import write_mp4
from hiar.models.pixels import to_frames, to_video
from hiar.parameters import parse_params, read_yaml
from hiar.stages.common import Paths
from hiar.stages.comparison import Contender, contenders
from hiar.statistics.validations import BOTH_WAYS, SCORES
from hiar.worlds.interface import FIRST_CLIP, open_world
from hiar.worlds.shapes.codec import PatchCodec
from hiar.worlds.shapes.render import clips

ROOT = Path(__file__).parents[1]
VIDEOS, FRAMES = 3, 30


def small_params(**changes: object) -> Params:
    """The default experiment with few, short samples and two seeds; ``changes`` replace whole sections."""
    tree = read_yaml(ROOT / "params.yaml")
    sample = {"videos": VIDEOS, "frames": FRAMES, "caption_dropout": 0.0, "batch": 4}
    tree |= {"seeds": [0, 1], "sample": sample, "report": {"videos": 2, "reference": None, "table": None}}
    tree["runtime"] |= {"threads": 1}
    tree |= changes
    return parse_params(tree, Path("small"))


def write_samples(folder: Path, frames: Tensor, captions: list[str], params: Params) -> None:
    """Write a samples folder from videos uint8 (V, F, H, W, 3)."""
    folder.mkdir(parents=True)
    for index, video in enumerate(frames):
        write_mp4(folder / f"{index:04d}.mp4", video, params.world.frames_per_second)
    (folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions))
    write_manifest(folder, "samples", world=params.world.model_dump(mode="json"), block=params.video.block)


def sampled_workspace(workspace: Path, params: Params) -> None:
    """Write samples of all contenders; those of inits lose their colours over the video, the others are perfect.

    Each seed's codec is there too, untrained, with its linear decoder.
    """
    for seed in params.seeds:
        codec = Paths(workspace, seed).codec
        codec.mkdir(parents=True)
        open_world(params.world).new_codec(params.codec, seed=seed, frames=params.video.frames).save(codec)
        write_manifest(codec, "codec")
    for one in contenders(params):
        count = params.video.frames if one.stage == "teacher" else params.sample.frames
        frames, captions = true_clips(params, one.seed, count)
        codec = PatchCodec.load(Paths(workspace, one.seed).codec)
        decoded = to_frames(codec.decode(codec.encode(to_video(frames))))
        write_samples(one.samples(workspace), fade(frames) if one.stage == "init" else decoded, captions, params)
        write_traces(workspace, one)


def true_clips(params: Params, seed: int, frames: int) -> tuple[Tensor, list[str]]:
    """The world's own clips for the samples' prompts, uint8 (V, F, H, W, 3), and their captions."""
    world = params.world.model_copy(update={"caption_dropout": params.sample.caption_dropout})
    return clips(world, seed=seed, first=FIRST_CLIP["sample"], count=params.sample.videos, frames=frames)


def fade(frames: Tensor) -> Tensor:
    """The videos with colours that turn grey from the first frame to the last."""
    grey = frames.float().mean(dim=-1, keepdim=True)
    share = torch.linspace(0, 1, frames.shape[1])[None, :, None, None, None]
    return (frames + share * (grey - frames)).round().to(torch.uint8)


def write_traces(workspace: Path, one: Contender) -> None:
    """Write a distillation's curve and log as the stage does; for one variant, validations with falling motion too."""
    if one.stage != "distill":
        return
    if one.variant == "hiar-no-fkl":
        scores = Paths(workspace, one.seed).distilled(one.variant) / SCORES
        scores.parent.mkdir(parents=True)
        speeds = [(10, 3.0, 2.9), (20, 2.0, 2.5), (30, 1.0, 1.1 + 0.2 * one.seed)]
        rows = [
            {"step": step, "metrics": {"smoothed_speed": walked, f"{BOTH_WAYS}smoothed_speed": whole}}
            for step, walked, whole in speeds
        ]
        scores.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = workspace / "curves" / f"seed-{one.seed}" / "distill" / f"{one.variant}.csv"
    curve.parent.mkdir(parents=True, exist_ok=True)
    curve.write_text(
        "step,critic,dmd\n0,2.5,\n"
        + "".join(f"{step},{(2 + one.seed) / step:.6g},{1 / step:.6g}\n" for step in range(1, 40))
    )
    log = workspace / "logs" / f"seed-{one.seed}" / "distill" / f"{one.variant}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(
        json.dumps(
            {
                "stage": "distill",
                "started": "2026-01-01T00:00:00+00:00",
                "seconds": 83.4,
                "peak_memory_mb": 1536,
                "hardware": "a machine",
                "threads": 1,
                "resumed": False,
            }
        )
    )
