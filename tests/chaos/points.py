"""Check that MLflow has each update of each training exactly once, as in the workspace's curves/."""

import csv
import time

from hiar.tracking.client import connect

PATIENCE = 120  # seconds for the sender, which may not have sent the last ones yet


def amiss(uri, workspace):
    """The points that MLflow lacks or has in excess, one line per curve; empty if all are equal."""
    end = time.monotonic() + PATIENCE
    while (found := _compare(connect(uri), workspace)) and time.monotonic() < end:
        time.sleep(1)
    return found


def forget(uri):
    """Delete the runs of all experiments, so that repeated work is recorded again."""
    client = connect(uri)
    for run in _runs(client):
        client.delete_run(run.info.run_id)


def _compare(client, workspace):
    runs = _runs(client)
    found = []
    for curve in sorted((workspace / "curves").rglob("*.csv")):
        seed = next(part.removeprefix("seed-") for part in curve.parts if part.startswith("seed-"))
        name = f"{curve.stem} seed {seed}"
        matching = [run for run in runs if run.info.run_name == name and run.data.tags["kind"] != "superseded"]
        if len(matching) != 1:
            found.append(f"{name}: {len(matching)} runs")
            continue
        with curve.open() as file:
            rows = list(csv.DictReader(file))
        for column in (rows[0].keys() if rows else set()) - {"step"}:
            points = client.get_metric_history(matching[0].info.run_id, column)
            has = sorted((point.step, f"{point.value:.6g}") for point in points)
            wanted = [(int(row["step"]), row[column]) for row in rows if row[column]]
            if has != wanted:
                lacks, more = set(wanted) - set(has), len(has) - len(set(has) & set(wanted))
                found.append(f"{name} {column}: {len(lacks)} of {len(wanted)} missing, {more} too many")
    return found


def _runs(client):
    experiments = [one.experiment_id for one in client.search_experiments()]
    return client.search_runs(experiments, max_results=1000) if experiments else []
