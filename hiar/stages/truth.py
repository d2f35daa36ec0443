"""The true world's videos as a perfect generator would make them: through codec and h264, like all other videos."""

from __future__ import annotations

from pathlib import Path

import torch

from hiar.config import Params
from hiar.io.artifacts import read_manifest
from hiar.io.names import video_name
from hiar.io.progress import Progress
from hiar.io.video import write_mp4
from hiar.models.pixels import to_frames, to_video
from hiar.stages.common import Paths, sample_world
from hiar.worlds.interface import FIRST_CLIP

BATCH = 16  # clips that are rendered and encoded at a time


@torch.no_grad()
def write_true_videos(params: Params, workspace: Path, seed: int, count: int, folder: Path) -> list[str]:
    """Write the world's clips of the samples' first ``count`` prompts, named like the samples.

    Returns the captions. Raises UserError when the seed's codec is missing or altered.
    """
    place, world = Paths(workspace, seed).codec, sample_world(params)
    read_manifest(place, "codec")
    codec = world.load_codec(place)
    captions: list[str] = []
    with Progress("write the true world", count, unit="videos") as progress:
        for first in range(0, count, BATCH):
            frames, said = world.clips(
                seed=seed,
                first=FIRST_CLIP["sample"] + first,
                count=min(BATCH, count - first),
                frames=params.sample.frames,
            )
            for number, clip in enumerate(frames, start=first):
                decoded = to_frames(codec.decoding()(codec.encode(to_video(clip[None]))))[0]
                write_mp4(folder / video_name(number, params.sample.videos), decoded, world.frames_per_second)
                progress.advance()
            captions += said
    return captions
