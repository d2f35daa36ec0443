"""MLflow's records of an experiment, for tests to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient


class Records:
    def __init__(self, place: Path | str, experiment: str = "hiar") -> None:
        uri = place if isinstance(place, str) else f"sqlite:///{place / 'mlflow.db'}"
        self.client = MlflowClient(uri)
        self.experiment = self.client.get_experiment_by_name(experiment)
        assert self.experiment is not None
        runs = self.client.search_runs([self.experiment.experiment_id])
        self.parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        self.stages = [run for run in runs if "mlflow.parentRunId" in run.data.tags]

    def status(self) -> dict[str, str]:
        return {run.info.run_name: run.info.status for run in self.stages}

    def run(self, name: str) -> Any:
        (run,) = [run for run in self.stages if run.info.run_name == name]
        return run

    def points(self, name: str, metric: str) -> list[tuple[int, float]]:
        """All points of a metric, by step."""
        found = self.client.get_metric_history(self.run(name).info.run_id, metric)
        return sorted((point.step, point.value) for point in found)
