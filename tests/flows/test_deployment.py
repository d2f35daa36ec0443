"""prefect.yaml: its deployments name flows, match their parameters, fire on schedule and contain no user's folder."""

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from flows.stack import health
from hiar.workspace import experiment_tree

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PROJECT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {one["name"]: one for one in PROJECT["deployments"]}


def flow_of(name):
    from prefect.flows import load_flow_from_entrypoint

    with pytest.MonkeyPatch.context() as patch:  # Prefect leaves the script's folder in sys.path
        patch.setattr("sys.path", [*sys.path])
        return load_flow_from_entrypoint(f"{ROOT / DEPLOYMENTS[name]['entrypoint']}")


@pytest.mark.parametrize("name", ["nightly", "any", "weekly"])
def test_deployed_parameters_are_valid_for_their_flow(name):
    given = DEPLOYMENTS[name]["parameters"]
    assert {**flow_of(name).validate_parameters(given), **given} == flow_of(name).validate_parameters(given)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("any", {"name": "../smoke"}),
        ("any", {"name": "smoke; rm"}),
        ("any", {"force": "perhaps"}),
        ("stage", {"stage": "--force"}),
        ("stage", {}),
        ("folder", {"folder": "out", "out": "scores.txt"}),
        ("weekly", {"last": -1}),
    ],
)
def test_invalid_parameters_are_refused_before_anything_starts(name, given):
    from prefect.exceptions import ParameterBindError, ParameterTypeError, SignatureMismatchError

    with pytest.raises((ParameterBindError, ParameterTypeError, SignatureMismatchError)):
        flow_of(name).validate_parameters(given)
    if "name" in given or "stage" in given:
        assert "pattern" in str(flow_of(name).parameters.properties)  # so Prefect's web form checks it, too


@pytest.mark.parametrize("name", ["table3+vbench", "front", "wan2.1-hiar"])
def test_every_stage_of_an_experiment_can_be_deployed(name, tmp_path):
    """By its name in DVC, including dimensions and walked students."""
    from dvc.repo import Repo

    (tmp_path / "params.yaml").write_text(yaml.safe_dump(experiment_tree(ROOT, name)))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        stages = [stage.name for stage in repo.index.stages]
    assert len(stages) >= 10
    for stage in stages:
        assert flow_of("stage").validate_parameters({"stage": stage})["stage"] == stage


def test_experiments_and_stages_have_different_pools():
    pools = {name: one["work_pool"]["name"] for name, one in DEPLOYMENTS.items()}
    assert pools["stage"] not in (pools["any"], pools["nightly"])
    assert {*pools.values()} == health.POOLS.keys()  # that `make stack` makes


def test_a_command_that_fails_ends_its_flow_with_its_line(tmp_path, monkeypatch):
    from prefect.logging import disable_run_logger

    from flows import deployments

    monkeypatch.chdir(tmp_path)
    with disable_run_logger():
        assert deployments._hiar("--help") is None
        failed = deployments._hiar("storage", "verify")
    assert failed.is_failed()
    assert failed.message.startswith(".dvc/config: names no remote; add one")


@pytest.mark.usefixtures("prefect_server")
def test_the_nightly_schedule_makes_runs_at_three():
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    nightly = DEPLOYMENTS["nightly"]
    (schedule,) = nightly["schedules"]
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            flow_id=client.create_flow(flow_of("nightly")),
            name=nightly["name"],
            schedules=[DeploymentScheduleCreate(schedule={"cron": schedule["cron"], "timezone": schedule["timezone"]})],
        )
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={})
        runs = client.read_flow_runs(deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])))
    assert runs
    assert {(run.expected_start_time.hour, run.expected_start_time.minute) for run in runs} == {(3, 0)}


def test_retention_deletes_from_the_store_only_on_request(monkeypatch, tmp_path):
    from flows import deployments

    commands = []
    subprocess.run(["git", "init", "--quiet", os.fspath(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(deployments, "_hiar", lambda *arguments, **_: commands.append(arguments))
    deployments.retention.fn(last=2)
    deployments.retention.fn(last=0, delete=True)
    assert commands == [("storage", "gc", "--last", "2"), ("storage", "gc", "--last", "0", "--delete")]


def test_retention_fetches_branches_and_tags_of_others_before_it_deletes(monkeypatch, tmp_path):
    """If the repository cannot be reached, nothing is deleted."""
    from flows import deployments
    from hiar.storage.runs import runs_committed

    origin, clone = tmp_path / "origin", tmp_path / "clone"

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost", *arguments], check=True)

    def commit(what):
        (origin / "dvc.lock").write_text(f"schema: '2.0'\nstages: {{{what}: {{cmd: make}}}}\n")
        git("-C", os.fspath(origin), "add", "dvc.lock")
        git("-C", os.fspath(origin), "commit", "--quiet", "--message", what)

    git("init", "--quiet", "--initial-branch=main", os.fspath(origin))
    commit("first")
    git("clone", "--quiet", os.fspath(origin), os.fspath(clone))
    git("-C", os.fspath(origin), "switch", "--quiet", "--create", "other")
    commit("branch")
    git("-C", os.fspath(origin), "switch", "--quiet", "--detach")
    commit("milestone")
    git("-C", os.fspath(origin), "tag", "milestone")
    commands = []
    monkeypatch.setattr(deployments, "_hiar", lambda *arguments, **_: commands.append(arguments))
    monkeypatch.chdir(clone)
    assert deployments.retention.fn(delete=True) is None
    assert {stage for run in runs_committed(clone) for stage in run.stages} == {"first", "branch", "milestone"}
    origin.rename(tmp_path / "away")
    assert deployments.retention.fn(delete=True).is_failed()
    assert len(commands) == 1


@pytest.fixture
def webhook():
    """The address of a local webhook, and the messages it has received."""
    lines = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            lines.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/failures", lines
        server.shutdown()


def test_the_webhook_is_called_for_failures_only(prefect_server, webhook, tmp_path):
    from prefect import flow
    from prefect.states import Failed

    address, lines = webhook
    settings = {"PREFECT_API_URL": prefect_server, "HIAR_WEBHOOK": address}
    (block,) = re.findall(r"^```sh\npython - <<'END'\n(.*?)^END\n```$", PAGE, re.DOTALL | re.MULTILINE)
    subprocess.run([sys.executable, "-"], input=block, env=os.environ | settings, cwd=tmp_path, text=True, check=True)

    @flow(flow_run_name="{name} 1a2b3c4")
    def experiment(name, reason):
        return Failed(message=reason) if reason else None

    experiment("whole", "", return_state=True)
    end = time.monotonic() + 300
    while not lines and time.monotonic() < end:  # the trigger takes effect with a delay
        experiment("smoke", "codec@0: was killed by SIGKILL", return_state=True)
        time.sleep(2)
    assert {line["text"] for line in lines} == {"smoke 1a2b3c4 failed: codec@0: was killed by SIGKILL"}
