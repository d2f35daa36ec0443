"""Stage vbench: score a seed's samples in one of VBench's dimensions, with the package of `hiar vbench score`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiar.config import Params
from hiar.errors import RunFailed, UserError
from hiar.io.artifacts import content_hash, read_manifest
from hiar.io.files import write_json
from hiar.metrics.summary import Figures, Summary, summarise
from hiar.stages.common import Paths, stage
from hiar.stages.comparison import SAMPLES, Contender, contenders
from hiar.vbench.asking import device_of
from hiar.vbench.dimensions import known_dimensions
from hiar.vbench.environment import default_folder, find_environment
from hiar.vbench.runner import score_folder
from hiar.vbench.totals import TOTALS, Totals, totals
from hiar.vbench.values import UNIT

KIND = "vbench"  # of its artifacts' manifests
RECORDS = Path(".hiar", "vbench")  # in a workspace: results by video, so that none is computed twice
PREFIX = "vbench_"  # of these metrics' names


def run(params: Params, workspace: Path, seed: int, dimension: str) -> None:
    """Write artifacts/seed-S/vbench/DIMENSION: one JSON file per contender, with its value and its videos' values.

    Results of the same videos in an earlier run are reused.
    Raises UserError if the dimension cannot run here, and RunFailed if it fails.
    """
    known_dimensions([dimension])
    models = {_name(one): one.samples(workspace) for one in contenders(params) if one.seed == seed}
    parents = {name: (folder, SAMPLES) for name, folder in models.items()}
    out = Paths(workspace, seed).vbench(dimension)
    with stage("vbench", params, workspace, out, seed=seed, parents=parents, variant=dimension) as work:
        auto = params.runtime.device == "auto"
        device = device_of(find_environment(default_folder())) if auto else params.runtime.device
        for name, samples in models.items():
            kept = workspace / RECORDS / f"seed-{seed}" / name
            protocol = params.score.vbench_protocol
            failed = score_folder(samples, [dimension], kept, protocol=protocol, devices=[device]).failed
            if failed:
                raise RunFailed(f"{samples}: no value; {failed[dimension]}")
            result = json.loads((kept / f"{dimension}.json").read_text(encoding="utf-8"))
            write_json(work.folder / f"{name}.json", result)
        work.finish(KIND, dimension=dimension)


def vbench_figures(contender: Contender, videos: Sequence[Path], dimensions: Sequence[str], workspace: Path) -> Figures:
    """The dimensions' figures for the ``videos`` of a contender; facts: what made them, by dimension.

    Raises UserError if stage vbench has not scored these samples.
    """
    results = {name: _result(contender, name, workspace) for name in dimensions}
    return figures_of(results, [path.name for path in videos])


def figures_of(results: Mapping[str, Mapping[str, Any]], videos: Sequence[str]) -> Figures:
    """Figures of the named videos from results by dimension; on VBench's own prompts, a dimension is of some videos.

    A dimension's mean is VBench's own figure, and so are Quality, Semantic and Total if all of their dimensions are
    among them; a video that has all of these has its own.
    """
    values: list[dict[str, float]] = [{} for _ in videos]
    metrics: dict[str, Summary] = {}
    for name, result in results.items():
        for own, video in zip(values, videos, strict=True):
            if (value := result["by_video"].get(video)) is not None:
                own[PREFIX + name] = float(value) / UNIT.get(name, 1)
        metrics[PREFIX + name] = summarise(_known(values, name)) | {"mean": result["value"]}
    for own in values:
        one = totals({name: own[PREFIX + name] for name in results if PREFIX + name in own})
        own.update({PREFIX + name: figure for name, figure in _figures(one)})
    for name, figure in _figures(totals({name: result["value"] for name, result in results.items()})):
        metrics[PREFIX + name] = summarise(_known(values, name)) | {"mean": figure, "n": len(values)}
    fields = ("protocol", "consistency", "device", "weights", "versions")  # only some have a consistency
    facts: dict[str, object] = {
        name: {field: one[field] for field in fields if field in one} for name, one in results.items()
    }
    return Figures(metrics, values, facts)


def _known(values: Sequence[Mapping[str, float]], name: str) -> Tensor:
    return torch.tensor([own[PREFIX + name] for own in values if PREFIX + name in own])


def _result(contender: Contender, dimension: str, workspace: Path) -> Mapping[str, Any]:
    """The stage's result for a contender. Raises UserError if it is not of the samples that are there now."""
    folder, name = Paths(workspace, contender.seed).vbench(dimension), _name(contender)
    of = read_manifest(folder, KIND).get("parents", {}).get(name)
    if of != content_hash(contender.samples(workspace)):
        again = f"run `hiar stage vbench --seed {contender.seed} --dimension {dimension}`"
        raise UserError(f"{folder}: was made from other samples of {name} than the present ones; {again} again")
    result: Mapping[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return result


def _name(contender: Contender) -> str:
    """The name of a contender among those of a seed."""
    return contender.stage if contender.stage == contender.variant else f"{contender.stage}/{contender.variant}"


def _figures(found: Totals) -> list[tuple[str, float]]:
    """The totals for which no dimension is missing."""
    return [(name, figure) for name in TOTALS if (figure := getattr(found, name)) is not None]
