"""Score samples with the oracle of the built-in world: those of the experiment, or any folder of videos."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from hiar.config import Params, Score, World
from hiar.errors import UserError
from hiar.io.artifacts import MANIFEST, read_manifest, write_json
from hiar.io.progress import Progress
from hiar.io.tracking import tracked
from hiar.metrics.motion import LEAST_FRAMES
from hiar.metrics.summary import Summary, summarise
from hiar.metrics.world import measure
from hiar.parameters import load_params
from hiar.stages.common import write_log
from hiar.stages.comparison import CAPTIONS, SAMPLES, contenders, read_captions, read_videos
from hiar.stages.truth import write_true_videos
from hiar.world.oracle import judge

BATCH = 32  # videos scored at once: enough to keep the oracle busy, little enough for memory


def run(params: Params, workspace: Path) -> None:
    """Score every contender of ``params`` and the true world.

    Writes metrics/summary.json, a row a contender, and metrics/world.json, a row a seed: what was scored and how, and
    the metrics of the world's own clips of the same captions, through codec and h264 like the samples. Raises UserError
    when samples are missing, altered, or too short.
    """
    began = time.monotonic()
    torch.set_num_threads(params.runtime.threads)
    summary = workspace / "metrics" / "summary.json"
    with tracked("score", None, None, params, workspace) as run:
        rows = []
        for contender in contenders(params):
            folder = contender.samples(workspace)
            read_manifest(folder, SAMPLES)
            captions = read_captions(folder)
            frames = read_videos(folder, len(captions))
            metrics = score(frames, captions, params.world, params.score, params.video.block, folder)
            rows.append({**asdict(contender), "metrics": metrics})
            place = f"{contender.stage}/{contender.variant}/seed-{contender.seed}"
            run.log(0, {f"{place}/{name}": figure["mean"] for name, figure in metrics.items()})
        truth = [
            {
                "seed": seed,
                "protocol": _protocol(params.world, params.score, params.video.block),
                "metrics": _true_world(params, workspace, seed),
            }
            for seed in params.seeds
        ]
        write_json(summary, rows)
        write_json(workspace / "metrics" / "world.json", truth)
        run.artifact(summary)
    write_log(workspace, "score", params, began, stage="score")


def score_folder(folder: Path, out: Path, workspace: Path = Path()) -> None:
    """Score a folder of ``NAME.mp4`` videos, in the order of their names, with a caption a line in captions.txt.

    World and block come from the folder's manifest where it has one, else from params.yaml of the ``workspace``, as the
    thresholds always do; ``out`` holds them beside the metrics.

    Raises UserError naming what is missing, truncated, of another size, not what the manifest says, or does not fit the
    captions.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds mp4 videos and {CAPTIONS}")
    params = load_params(workspace / "params.yaml")
    torch.set_num_threads(params.runtime.threads)
    world, block = _geometry(folder, params)
    captions = read_captions(folder)
    frames = read_videos(folder, len(captions))
    result = {
        "protocol": _protocol(world, params.score, block),
        "videos": len(captions),
        "frames": frames.shape[1],
        "metrics": score(frames, captions, world, params.score, block, folder),
    }
    write_json(out, result)


def score(
    frames: Tensor, captions: list[str], world: World, thresholds: Score, block: int, source: Path | str
) -> dict[str, Summary]:
    """Summaries by metric of videos uint8 (V, F, H, W, 3); ``source`` is what errors and the progress line name."""
    height, width = frames.shape[2:4]
    if (height, width) != (world.size, world.size):
        sizes = f"{width}x{height} pixels, the world {world.size}x{world.size}"
        raise UserError(f"{source}: videos are {sizes}; use the params.yaml they were made with")
    least = max(LEAST_FRAMES, thresholds.segments)
    if frames.shape[1] < least:
        raise UserError(f"{source}: videos have {frames.shape[1]} frames, scoring needs {least}; make longer ones")
    parts = []
    with Progress(f"score {source}", len(frames)) as progress:
        for first in range(0, len(frames), BATCH):
            batch = frames[first : first + BATCH]
            judgement = judge(world, batch, captions[first : first + BATCH])
            parts.append(measure(batch, judgement, world, thresholds, block))
            progress.advance(len(batch))
    return {name: summarise(torch.cat([part[name] for part in parts])) for name in parts[0]}


def _true_world(params: Params, workspace: Path, seed: int) -> dict[str, Summary]:
    """The metrics of the clips whose captions are the samples' prompts, made as the samples are."""
    with TemporaryDirectory() as scratch:
        captions = write_true_videos(params, workspace, seed, params.sample.videos, Path(scratch))
        frames = read_videos(Path(scratch), len(captions))
    return score(frames, captions, params.world, params.score, params.video.block, "the true world")


def _protocol(world: World, thresholds: Score, block: int) -> dict[str, Any]:
    """What the videos were scored against."""
    return {
        "world": world.model_dump(mode="json"),
        "score": thresholds.model_dump(mode="json"),
        "block": block,
    }


def _geometry(folder: Path, params: Params) -> tuple[World, int]:
    """World and block of the videos of a folder: of its manifest where it has one, else of ``params``."""
    if not (folder / MANIFEST).exists():
        return params.world, params.video.block
    manifest = read_manifest(folder, SAMPLES)
    try:
        return World.model_validate(manifest["world"]), int(manifest["block"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder / MANIFEST}: world, block: are missing or not valid; delete the file to score with params.yaml"
        ) from None
