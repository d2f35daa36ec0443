"""MLflow's records of a project, mlflow.db and mlruns/, which stay valid when its folder is moved or copied."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

DATABASE, ARTIFACTS = "mlflow.db", "mlruns"
VIEW = "contenders"  # the view of the list of runs: its filter, order and columns


def records_uri(project: Path) -> str:
    """The tracking URI of a project's database, as a relative path: an absolute one with a ? would be cut there."""
    return f"sqlite:///{os.path.relpath(project / DATABASE)}"


def artifacts_uri(project: Path) -> str:
    """The URI of the folder for the files of a project's runs, which MLflow wants absolute."""
    return (project.resolve() / ARTIFACTS).as_uri()


def view_paths(project: Path) -> dict[str, str]:
    """Paths of MLflow's pages that list the contenders, by the name of MLflow's experiment. Raises sqlite3.Error."""
    if not (project / DATABASE).exists():
        return {}
    with closing(sqlite3.connect(project / DATABASE)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiment_tags'").fetchone():
            return {}
        rows = database.execute(
            "SELECT experiment_id, name FROM experiments JOIN experiment_tags USING (experiment_id) WHERE key = ?",
            (f"mlflow.sharedViewState.{VIEW}",),
        ).fetchall()
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    return {name: f"/#/experiments/{number}/runs?{query}" for number, name in rows}


def follow_project(project: Path) -> None:
    """Rewrite the paths in all records to where the project is now: MLflow stores absolute ones, which a move breaks.

    Only records of ours in the project's own database are changed. Raises sqlite3.Error if that fails.
    """
    if not (project / DATABASE).exists():
        return
    here = artifacts_uri(project)
    with closing(sqlite3.connect(project / DATABASE)) as database, database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return  # MLflow creates the tables with the first run
        rows = database.execute(
            "SELECT DISTINCT artifact_location FROM experiments WHERE name = 'hiar' OR name LIKE 'hiar/%'"
        )
        for (before,) in rows.fetchall():
            if before == here or not (before.startswith("file:") and before.endswith(f"/{ARTIFACTS}")):
                continue
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                (here, len(before) + 1, len(before) + 1, f"{before}/"),
            )
            database.execute("UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (here, before))
