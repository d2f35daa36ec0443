"""How number formats change the videos of trained students: ``python -m benchmarks.formats --help``.

On a GPU `hiar sample` computes in bf16, and with --fp8 linear layers in fp8. A CPU computes with the same numbers,
slowly, so this measures quality and not speed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import measure_students
from benchmarks.report import table
from hiar.errors import UserError
from hiar.io.artifacts import code_version, read_manifest
from hiar.io.cpu import settle_cpu
from hiar.io.hardware import hardware
from hiar.io.progress import Progress
from hiar.judges.interface import open_judge
from hiar.metrics.summary import summarise
from hiar.models.card import load_card
from hiar.models.generator import load_generator
from hiar.models.pixels import to_frames
from hiar.parameters import load_params
from hiar.stages.common import sample_world
from hiar.stages.plan import round_to_fp8
from hiar.stages.prompted import check_request
from hiar.stages.request import Request
from hiar.stages.sample import sample_latents
from hiar.stages.videos import batches
from hiar.worlds.interface import FIRST_CLIP

FORMATS = "fp32", "bf16", "fp8"
METRICS = "good", "saturation_drift", "smoothed_speed", "border_jump"
BATCH = 64


def bench(checkpoints: list[Path], videos: int, frames: int, seed: int) -> dict[str, Any]:
    """The contents of the result file; differences are to the same videos in fp32."""
    settle_cpu()
    rows = []
    for checkpoint in checkpoints:
        read_manifest(checkpoint, "checkpoint")
        values: dict[str, dict[str, Tensor]] = {}
        for name in FORMATS:
            values[name], error = _measured(checkpoint, name, videos, frames, seed)
            rows.append(
                {
                    "checkpoint": f"{checkpoint.name}, seed {load_card(checkpoint).seed}",
                    "format": name,
                    "pass_difference": error,
                    "metrics": {metric: summarise(values[name][metric]) for metric in METRICS},
                    "from_fp32": {
                        metric: summarise(values[name][metric] - values["fp32"][metric]) for metric in METRICS
                    },
                }
            )
    asked = {"videos": videos, "frames": frames, "seed": seed}
    return asked | {"rows": rows, "hardware": hardware("auto"), "code": code_version()}


def _measured(
    checkpoint: Path, name: str, videos: int, frames: int, seed: int
) -> tuple[dict[str, Tensor], float | None]:
    """Metrics, one value per video, and the relative change of a pass by fp8."""
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    source = load_generator(checkpoint)
    prompts = sample_world(params).prompts(seed=seed, first=FIRST_CLIP["sample"], count=videos)
    walk, _ = check_request(source, Request(checkpoint, prompts, frames))
    if walk is None:
        raise UserError(f"--checkpoint = {checkpoint}: is a teacher; name an init or a distilled student")
    if name != "fp32":
        source.denoiser.cast(torch.bfloat16)
    error = round_to_fp8(source) if name == "fp8" else None
    parts, judge = [], open_judge(source.card.world, params.score, *source.block_pictures)
    with Progress(f"{checkpoint.name} in {name}", videos) as progress:
        for numbers in batches(videos, BATCH):
            asked = [prompts[number] for number in numbers]
            latents = sample_latents(source, asked, frames, walk, seed, numbers)
            shown = to_frames(source.codec.decoding()(latents.float()))
            parts.append(judge.measure(judge.look(shown, None, asked)))
            progress.advance(len(numbers))
    return {metric: torch.cat([part[metric] for part in parts]) for metric in METRICS}, error


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    heads = ["student", "computed in", "a pass differs by", *METRICS]
    rows = [
        [
            row["checkpoint"],
            row["format"],
            "-" if row["pass_difference"] is None else f"{row['pass_difference']:.1%}",
            *(_figure(row["metrics"][m], row["from_fp32"][m], row["format"] == "fp32") for m in METRICS),
        ]
        for row in result["rows"]
    ]
    said = (
        f"{result['videos']} videos of {result['frames']} frames a row, the same prompts and noise in all rows, "
        f"mean ± standard error over videos; in brackets the difference from fp32's, video by video. "
        f"{result['hardware']}, commit {result['code']['commit'][:12]}."
    )
    return f"# Number formats\n\n{said}\n\n{table(heads, rows)}\n"


def _figure(figure: dict[str, float], difference: dict[str, float], first: bool) -> str:
    said = f"{figure['mean']:.4f} ± {figure['se']:.4f}"
    return said if first else f"{said} ({difference['mean']:+.4f} ± {difference['se']:.4f})"


def main(line: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    frames_help = "per video; a multiple of the checkpoint's block"
    return measure_students("formats", __doc__, bench, page, line, videos=256, frames=60, frames_help=frames_help)


if __name__ == "__main__":
    sys.exit(main())
