"""The paper's tables with our figures in them: what `hiar tables` writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hiar.config import Params
from hiar.errors import UserError
from hiar.io.files import write_text
from hiar.parameters import load_params
from hiar.report.logs import machine_facts
from hiar.report.paper import Beside, as_html, as_markdown, beside, claims_csv, figures_csv
from hiar.stages.comparison import read_summary
from hiar.statistics.claims import TABLES, read_table
from hiar.statistics.paired import VIDEOS, Scores, add_wholes, read_scores


def table_of(experiment: str, params_of: Callable[[str], Params], root: Path) -> Beside:
    """The paper's table that an experiment reproduces, with the figures of its last run.

    params_of(name): an experiment's parameters, as `hiar run` would run it. A row's figures may come from another
    experiment run beside this one, if that was run.
    Raises UserError if the experiment is for no table, was not run, or was run with other parameters.
    """
    params, workspace = params_of(experiment), _workspace(root, experiment)
    if params.report.table is None:
        raise UserError(
            f"experiment '{experiment}': report.table = null: belongs to no table of the paper; name one that does"
        )
    table = read_table(root / TABLES, params.report.table, params.world.kind)
    if not (workspace / VIDEOS).exists():
        raise UserError(f"{workspace / VIDEOS}: no such file; run `hiar run {experiment}` first")
    scores, facts, rows = _scores(experiment, params, workspace), _facts(params, workspace), []
    for row in table.rows:
        over = row.beside and row.beside.get(params.world.kind)
        other = f"{experiment}+{over}"
        if row.beside is None:
            rows.append(row)
        elif over is not None and (_workspace(root, other) / VIDEOS).exists():
            its, place = params_of(other), _workspace(root, other)
            name = f"{other}: {row.contender}"
            found = _scores(other, its, place)
            scores |= {name: found[row.contender]} if row.contender in found else {}
            facts.append((row.name, f"experiment {other}, commit {dict(_facts(its, place)).get('Commit', '?')}"))
            rows.append(row.model_copy(update={"contender": name}))
        else:
            lacks = "an experiment of its own in this world" if over is None else f"hiar run {other}"
            rows.append(row.model_copy(update={"contender": None, "lacks": lacks}))
    return beside(experiment, table._replace(rows=rows), scores, facts)


def write_tables(tables: Sequence[Beside], folder: Path) -> list[Path]:
    """Write tables.html, tables.md, tables.csv and, with the claims, claims.csv to ``folder``; returns their paths."""
    forms = {"tables.html": as_html, "tables.md": as_markdown, "tables.csv": figures_csv, "claims.csv": claims_csv}
    for name, render in forms.items():
        write_text(folder / name, render(tables))
    return [folder / name for name in forms]


def _workspace(root: Path, experiment: str) -> Path:
    return root / "runs" / experiment


def _scores(experiment: str, params: Params, workspace: Path) -> Scores:
    """The scores of an experiment that was run. Raises UserError if its parameters have changed since."""
    if load_params(workspace / "params.yaml") != params:
        raise UserError(
            f"{workspace / 'params.yaml'}: differs from experiment '{experiment}' as it is now; "
            f"run `hiar run {experiment}` again"
        )
    scores = read_scores(workspace / VIDEOS)
    if params.score.vbench:
        add_wholes(scores, read_summary(params, workspace))
    return scores


def _facts(params: Params, workspace: Path) -> list[tuple[str, str]]:
    """What was run, on what and for how long, as far as reports/run.json says."""
    sample, lengths = params.sample, params.sample.frames / params.video.frames
    said = [
        ("Training seeds", ", ".join(map(str, params.seeds))),
        ("Videos", f"{sample.videos} of {sample.frames} latent frames, {lengths:g} training lengths"),
    ]
    try:
        run: dict[str, Any] = json.loads((workspace / "reports" / "run.json").read_text(encoding="utf-8"))
        return [*said, ("Commit", ", ".join(run["commits"])), *machine_facts(run["stages"])]
    except (OSError, ValueError, KeyError):
        return said
