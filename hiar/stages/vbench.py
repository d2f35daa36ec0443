"""VBench's figures of an experiment's samples, for its scores: the same package and records as `hiar vbench score`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiar import config
from hiar.errors import RunFailed
from hiar.metrics.summary import Figures, Summary, summarise
from hiar.vbench.runner import score_folder
from hiar.vbench.totals import TOTALS, Totals, totals
from hiar.vbench.values import UNIT

RECORDS = Path(".hiar", "vbench")  # in a workspace: what is kept by video, so that nothing is done twice
PREFIX = "vbench_"  # of metrics by these names


def score_samples(
    samples: Path, videos: Sequence[Path], dimensions: Sequence[str], out: Path, runtime: config.Runtime
) -> Figures:
    """Score the ``videos`` of a folder; what is in ``out`` of the same ones is not done again.

    As many dimensions at once as the stage has devices. A dimension's mean is VBench's own figure, and so are Quality,
    Semantic and Total where all of their dimensions are among them; a video that has all of these has its own.
    Raises UserError for what `check_scoring` refuses, and RunFailed when a dimension breaks down.
    """
    failed = score_folder(samples, dimensions, out, devices=_devices(runtime)).failed
    if failed:
        raise RunFailed(f"{samples}: {', '.join(failed)}: no value; {next(iter(failed.values()))}")
    results = {name: json.loads((out / f"{name}.json").read_text(encoding="utf-8")) for name in dimensions}
    return figures_of(results, [path.name for path in videos])


def figures_of(results: Mapping[str, Any], videos: Sequence[str]) -> Figures:
    """What results by dimension say of videos by name; of VBench's own prompts, a dimension is of some videos alone."""
    values: list[dict[str, float]] = [{} for _ in videos]
    metrics: dict[str, Summary] = {}
    for name, result in results.items():
        for own, video in zip(values, videos, strict=True):
            if (value := result["by_video"].get(video)) is not None:
                own[PREFIX + name] = float(value) / UNIT.get(name, 1)
        metrics[PREFIX + name] = summarise(_known(values, name)) | {"mean": result["value"]}
    for own in values:
        one = totals({name: own[PREFIX + name] for name in results if PREFIX + name in own})
        own |= {PREFIX + name: figure for name, figure in _figures(one)}
    for name, figure in _figures(totals({name: result["value"] for name, result in results.items()})):
        metrics[PREFIX + name] = summarise(_known(values, name)) | {"mean": figure, "n": len(values)}
    fields = ("protocol", "device", "weights", "versions")
    return Figures(metrics, values, {name: {field: one[field] for field in fields} for name, one in results.items()})


def _known(values: Sequence[Mapping[str, float]], name: str) -> Tensor:
    return torch.tensor([own[PREFIX + name] for own in values if PREFIX + name in own])


def _figures(found: Totals) -> list[tuple[str, float]]:
    """Those that no missing dimension leaves open."""
    return [(name, figure) for name in TOTALS if (figure := getattr(found, name)) is not None]


def _devices(runtime: config.Runtime) -> list[str]:
    """Those that the flow has taken for this stage: of GPUs the first ones that are visible."""
    count = runtime.processes or 1
    if runtime.device == "cuda" or (runtime.device == "auto" and torch.cuda.is_available()):
        return [f"cuda:{number}" for number in range(min(count, torch.cuda.device_count()) or 1)]
    return ["cpu"] * count
