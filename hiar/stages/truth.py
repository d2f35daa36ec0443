"""The true world's videos as a perfect generator would leave them: through codec and h264, like everybody else's."""

from __future__ import annotations

from pathlib import Path

import torch

from hiar.config import Params
from hiar.io.artifacts import read_manifest
from hiar.io.video import write_mp4
from hiar.models.codec import PatchCodec, to_frames, to_video
from hiar.stages.common import FIRST_CLIP, Paths, sample_world
from hiar.world.render import clips

BATCH = 16  # clips that are rendered and encoded at a time


@torch.no_grad()
def write_true_videos(params: Params, workspace: Path, seed: int, count: int, folder: Path) -> list[str]:
    """Write {0000,0001,...}.mp4, the clips whose captions are the first ``count`` prompts of the samples.

    Returns the captions. Raises UserError when the seed's codec is missing or altered.
    """
    place = Paths(workspace, seed).codec
    read_manifest(place, "codec")
    codec = PatchCodec.load(place)
    captions: list[str] = []
    for first in range(0, count, BATCH):
        frames, said = clips(
            sample_world(params),
            seed=seed,
            first=FIRST_CLIP["sample"] + first,
            count=min(BATCH, count - first),
            frames=params.sample.frames,
        )
        for number, clip in enumerate(frames, start=first):
            decoded = to_frames(codec.decode(codec.encode(to_video(clip[None]))))[0]
            write_mp4(folder / f"{number:04d}.mp4", decoded, params.world.frames_per_second)
        captions += said
    return captions
