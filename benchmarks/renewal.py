"""How renewing contexts at a prompt change affects trained students' videos: ``python -m benchmarks.renewal --help``.

The prompt of each video changes half way. The oracle measures how many of the frames after that show the new prompt,
once as `hiar stream` makes them and once with --renew, on the same prompts and noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import measure_students
from benchmarks.report import table
from hiar.errors import UserError
from hiar.grid import fastest
from hiar.io.artifacts import code_version, read_manifest
from hiar.io.cpu import settle_cpu
from hiar.io.hardware import hardware
from hiar.io.progress import Progress
from hiar.judges.interface import open_judge
from hiar.models.generator import load_generator
from hiar.models.pixels import to_frames
from hiar.parameters import load_params
from hiar.rollout.renewed import walk_renewed
from hiar.rollout.walk import walk
from hiar.stages.common import sample_world
from hiar.stages.prompted import check_request
from hiar.stages.request import Request
from hiar.stages.rollouts import make_rollout
from hiar.stages.videos import batches
from hiar.statistics.intervals import Interval, over_seeds, over_videos
from hiar.worlds.interface import FIRST_CLIP

WALKS: dict[str, Callable[..., Any]] = {"kept": walk, "renewed": walk_renewed}
# Of the frames after the change: the share that shows the new prompt, in the first fifth and in all, and the distance
# of backgrounds in RGB, from 0 to 1.
METRICS = "good_segment_1", "good", "background_error"
BATCH = 64

Values = dict[str, dict[str, Tensor]]  # by walk and metric, one value per video


def bench(checkpoints: list[Path], videos: int, frames: int, seed: int) -> dict[str, Any]:
    """The contents of the result file; intervals are of paired differences, renewed minus kept."""
    settle_cpu()
    by_method: dict[str, dict[int, Values]] = {}
    for checkpoint in checkpoints:
        read_manifest(checkpoint, "checkpoint")
        method, trained, values = _measured(checkpoint, videos, frames, seed)
        by_method.setdefault(method, {})[trained] = values
    rows = [
        {"method": method, "metric": metric, "seeds": sorted(seeds)} | _compared(seeds, metric)
        for method, seeds in by_method.items()
        for metric in METRICS
    ]
    asked = {"videos": videos, "frames": frames, "seed": seed}
    return asked | {"rows": rows, "hardware": hardware("auto"), "code": code_version()}


def _measured(checkpoint: Path, videos: int, frames: int, seed: int) -> tuple[str, int, Values]:
    """The method of a student, its training seed, and the metrics of its videos."""
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    told = params.model_copy(update={"sample": params.sample.model_copy(update={"caption_dropout": 0.0})})
    source = load_generator(checkpoint)
    prompts = sample_world(told).prompts(seed=seed, first=FIRST_CLIP["sample"], count=2 * videos)
    way, _ = check_request(source, Request(checkpoint, prompts, frames))
    block = source.card.video.block
    if way is None:
        raise UserError(f"--checkpoint = {checkpoint}: is a teacher; name an init or a distilled student")
    if frames % (2 * block):
        raise UserError(f"--frames = {frames}: must be twice a multiple of the block of {block} frames")
    order, passes = fastest(way.context)
    judge = open_judge(source.card.world, params.score, *source.block_pictures)
    found: dict[str, list[dict[str, Tensor]]] = {name: [] for name in WALKS}
    with Progress(str(checkpoint), videos) as progress, torch.no_grad():
        for numbers in batches(videos, BATCH):
            before, after = (source.embed([prompts[n + half] for n in numbers]) for half in (0, videos))
            changes = {frames // block // 2: after}
            rollout = make_rollout(source, before, way, frames, seed, numbers, changes)
            for name, walking in WALKS.items():
                blocks = [latent for _, latent in walking(source.denoiser, rollout, order, passes=passes)]
                shown = to_frames(source.codec.decoding()(torch.cat(blocks, dim=2).float()))[:, frames // 2 :]
                asked = [prompts[n + videos] for n in numbers]
                found[name].append(judge.measure(judge.look(shown, None, asked)))
            progress.advance(len(numbers))
    values = {
        name: {metric: torch.cat([part[metric] for part in parts]) for metric in METRICS}
        for name, parts in found.items()
    }
    return source.card.variant or source.card.stage, source.card.seed, values


def _compared(seeds: dict[int, Values], metric: str) -> dict[str, Any]:
    """Means, and the intervals of the difference over videos and over training seeds."""
    pairs = {seed: (values["renewed"][metric] - values["kept"][metric]).numpy() for seed, values in seeds.items()}
    means = {
        name: float(torch.stack([values[name][metric].mean() for values in seeds.values()]).mean()) for name in WALKS
    }
    return means | {
        "over_videos": _plain(over_videos(pairs)),
        "over_seeds": _plain(over_seeds([float(one.mean()) for one in pairs.values()])),
    }


def _plain(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else asdict(interval)


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    heads = ["student", "behind the change", *WALKS, "difference, over videos", "over training seeds"]
    rows = [
        [
            row["method"],
            row["metric"],
            *(f"{row[name]:.3f}" for name in WALKS),
            *(_said(row[over]) for over in ("over_videos", "over_seeds")),
        ]
        for row in result["rows"]
    ]
    said = (
        f"{result['videos']} videos of {result['frames']} frames a student, another prompt from the middle on; prompts "
        f"and noise are the same in both columns, differences paired, with 95 % intervals. {result['hardware']}, "
        f"commit {result['code']['commit'][:12]}."
    )
    return f"# Renewed contexts\n\n{said}\n\n{table(heads, rows)}\n"


def _said(interval: dict[str, float] | None) -> str:
    return "-" if interval is None else f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def main(line: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    frames_help = "per video; the prompt changes after half of them"
    return measure_students("renewal", __doc__, bench, page, line, videos=128, frames=120, frames_help=frames_help)


if __name__ == "__main__":
    sys.exit(main())
