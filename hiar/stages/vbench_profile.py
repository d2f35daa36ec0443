"""VBench as profiles of `hiar score`: its own package on any folder of videos, by one of its protocols."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hiar.errors import RunFailed, UserError
from hiar.stages.vbench import figures_of
from hiar.vbench.asking import device_of
from hiar.vbench.dimensions import PROTOCOLS, known_dimensions
from hiar.vbench.environment import default_folder, find_environment
from hiar.vbench.runner import score_folder
from hiar.vbench.totals import totals

SHARED = ("prompts", "generated_with")  # fields of a result that hold for all its videos


def split_profiles(names: Sequence[str], dimensions: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of profiles that are not VBench's, and of those that are.

    Raises UserError for one of VBench's that is given twice or has no environment here, and for dimensions without one.
    """
    ours, vbench = ([name for name in names if (name in PROTOCOLS) is chosen] for chosen in (False, True))
    for place, name in enumerate(vbench):
        if name in vbench[:place]:
            raise UserError(f"--profile = {name}: is given twice; give it once")
    if dimensions and not vbench:
        with_it = " or ".join(PROTOCOLS)
        raise UserError(f"--dimension = {dimensions[0]}: is VBench's; give --profile {with_it} too, or leave it out")
    if vbench:
        known_dimensions(dimensions)
        find_environment(default_folder())
    return ours, vbench


def score_by_vbench(folder: Path, protocol: str, dimensions: Sequence[str], kept: Path) -> dict[str, Any]:
    """A protocol's results for a folder of videos, in the form of other profiles'; its figures are VBench's own.

    dimensions: none takes all that run here and suit the videos. kept: a folder of results by dimension, to reuse.
    Raises UserError before anything is scored, and RunFailed, after all others are scored, if a dimension fails.
    """
    device = device_of(find_environment(default_folder()))
    scores = score_folder(folder, dimensions or None, kept, protocol=protocol, devices=[device])
    if scores.failed:
        raise RunFailed(f"{', '.join(scores.failed)}: no value; {next(iter(scores.failed.values()))}")
    if not scores.values:
        raise UserError(f"{folder}: no dimension of VBench runs here and suits its videos; see `hiar vbench doctor`")
    results = {name: json.loads((kept / f"{name}.json").read_text(encoding="utf-8")) for name in scores.values}
    videos = sorted({video for result in results.values() for video in result["by_video"]})
    figures, first = figures_of(results, videos), next(iter(results.values()))
    return {
        "record": {"profile": protocol, **{field: first[field] for field in SHARED}, "dimensions": figures.facts},
        "videos": len(videos),
        "missing": totals(scores.values).missing,
        "metrics": figures.metrics,
    }
