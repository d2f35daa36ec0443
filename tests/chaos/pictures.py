"""``python -m tests.chaos.pictures --out docs``: an experiment that the stack starts by cron, and its pages.

Three seeds of `smoke` are deployed and left alone: the schedule fires, workers run the experiment, its data go to S3
and its metrics to MLflow; then Chromium takes the screenshots of docs/operations.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from .lab import Lab

if TYPE_CHECKING:
    from playwright.sync_api import Page

NAME = "smoke-three-seeds"
SIZE = {"width": 1400, "height": 800}
SHOWN = {"prefect": "codec@0", "contenders": "hiar seed 0", "comparison": "Parallel Coordinates Plot"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.pictures", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of operations-*.png")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="hiar-pictures-") as name:
        lab = Lab(Path(name) / "project")
        try:
            (lab.folder / "experiments" / f"{NAME}.yaml").write_text(
                (lab.folder / "experiments" / "smoke.yaml").read_text() + "\nseeds: [0, 1, 2]\n"
            )
            subprocess.run(["git", "add", "experiments"], cwd=lab.folder, check=True)
            lab.share()
            print(f"healthy after {lab.start():.0f} s", flush=True)
            run = fired_by_cron(lab)
            began = time.monotonic()
            state = lab.end_of(run["id"])
            print(f"'{run['name']}': {state} after {time.monotonic() - began:.0f} s", flush=True)
            stored = lab.stored("hiar/dvc")
            contenders = contenders_of(lab)
            print(f"{stored} objects in s3://hiar/dvc, {len(contenders)} contenders in MLflow", flush=True)
            pages = {
                "prefect": f"{lab.api.removesuffix('/api')}/runs/flow-run/{run['id']}",
                "contenders": f"{lab.mlflow}/#/experiments/{contenders[0]['experiment_id']}/runs"
                "?workflowType=machine_learning&viewStateShareKey=contenders",
                "comparison": compared(lab, contenders),
            }
            take_screenshots(pages, arguments.out)
        finally:
            lab.stop()
    return 0 if state == "COMPLETED" and stored and contenders else 1


def fired_by_cron(lab: Lab) -> dict[str, str]:
    """Schedule the deployment every minute, wait for its first run, and remove the schedule."""
    deployment = lab.get("/deployments/name/experiment/any")
    schedule = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True, "parameters": {"name": NAME}}
    (made,) = lab.send(f"/deployments/{deployment['id']}/schedules", [schedule])
    began = time.monotonic()
    started: list[dict[str, str]] = []
    while not started:
        time.sleep(0.5)
        request = {
            "deployments": {"id": {"any_": [deployment["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
        }
        started = lab.send("/flow_runs/filter", request)
        if time.monotonic() > began + 300:
            sys.exit("the schedule of every minute has started no run within 300 s")
    url = f"{lab.api}/deployments/{deployment['id']}/schedules/{made['id']}"
    httpx.delete(url, timeout=60, trust_env=False).raise_for_status()
    for other in lab.send("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment["id"]]}}}):
        if other["id"] != started[0]["id"]:
            httpx.delete(f"{lab.api}/flow_runs/{other['id']}", timeout=60, trust_env=False)
    assert started[0]["auto_scheduled"]
    print(f"fired by cron after {time.monotonic() - began:.0f} s", flush=True)
    return started[0]


def contenders_of(lab: Lab) -> list[dict[str, str]]:
    """MLflow's records of the distilled students' samples."""
    request = {"experiment_ids": [], "max_results": 100, "filter": "tags.kind = 'contender'"}
    found = httpx.post(f"{lab.mlflow}/api/2.0/mlflow/experiments/search", json={"max_results": 10}, trust_env=False)
    request["experiment_ids"] = [one["experiment_id"] for one in found.json()["experiments"]]
    runs = httpx.post(f"{lab.mlflow}/api/2.0/mlflow/runs/search", json=request, trust_env=False).json().get("runs", [])
    return [one["info"] | {tag["key"]: tag["value"] for tag in one["data"]["tags"]} for one in runs]


def compared(lab: Lab, contenders: list[dict[str, str]]) -> str:
    """The page that compares the distilled HiAR and Self-Forcing of every seed."""
    chosen = [one for one in contenders if one["stage"] == "distill"]
    ids = json.dumps([one["run_id"] for one in chosen])
    return f"{lab.mlflow}/#/compare-runs?runs={ids}&experiments=[{json.dumps(chosen[0]['experiment_id'])}]"


def take_screenshots(pages: dict[str, str], out: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport=SIZE)
        page.set_default_timeout(120_000)
        for name, address in pages.items():
            page.goto(address)
            # Pages that poll their server are never idle, so wait for the element that must be visible.
            page.get_by_text(SHOWN[name]).first.wait_for()
            page.wait_for_timeout(4000)
            if (assistant := page.get_by_role("button", name="Close", exact=True)).count():
                assistant.last.click()  # closes MLflow's assistant, which covers a quarter of the page
            if name == "comparison":
                plot_by_method(page)
            page.wait_for_timeout(4000)  # until it is drawn
            page.screenshot(path=os.fspath(out / f"operations-{name}.png"))
            print(f"{out / f'operations-{name}.png'}: {address}", flush=True)
        chromium.close()


def plot_by_method(page: Page) -> None:
    """On MLflow's comparison page: a box per method, a point per seed."""
    page.get_by_role("tab", name="Box Plot").click()
    for axis, value in (("x-axis-selector", "method"), ("y-axis-selector", "saturation_drift")):
        page.locator(f"#{axis}").click()
        page.get_by_role("option", name=value, exact=True).first.click()


if __name__ == "__main__":
    sys.exit(main())
