"""Scores, logged to their contenders' runs under the same names, so that MLflow can compare contenders as runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hiar.config import Params
from hiar.errors import UserError
from hiar.io.manifests import content_hash
from hiar.tracking.stage import tracked

PART = re.compile(r"(?P<name>.+)_segment_(?P<number>\d+)")


def record_figures(params: Params, workspace: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Record the rows of metrics/summary.json, each in the run of its contender, whoever trained and sampled it.

    A mean is logged under the metric's name, its standard error as ``se/NAME``; values of parts of the video are the
    steps of ``segments/NAME``, from 1. The tag ``content`` is the model's hash, by which the run that trained it is
    found if the model came from a cache.
    """
    for row in rows:
        stage, variant, seed = row["stage"], row["variant"], row["seed"]
        with tracked(stage, seed, variant, params, workspace) as run:
            model = stage if stage in ("teacher", "init") else f"distill/{variant.partition('/')[0]}"
            with suppress(UserError):  # the model is not here if DVC did not need it
                run.tag("content", content_hash(workspace / "artifacts" / f"seed-{seed}" / model))
            run.figures(_whole(row["metrics"]))
            for number, figures in _parts(row["metrics"]).items():
                run.figures(figures, number)


def _whole(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {name: figure for name, figure in metrics.items() if not PART.fullmatch(name)}
    errors = {f"se/{name}": figure["se"] for name, figure in found.items() if figure["se"] is not None}
    return {name: figure["mean"] for name, figure in found.items()} | errors


def _parts(metrics: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Means by part of the video."""
    parts: dict[int, dict[str, float]] = {}
    for name, figure in metrics.items():
        if match := PART.fullmatch(name):
            parts.setdefault(int(match["number"]), {})[f"segments/{match['name']}"] = figure["mean"]
    return parts
