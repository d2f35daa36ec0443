"""Deployed flows, with a Prefect server: stages as separate runs, and the resources that a stage requests."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import jsonschema
import pytest
import yaml
from commands import ROOT
from waiting import wait_until

from flows import checkout, deployments
from flows.asked import kind_of_pool
from flows.devices import take_devices
from flows.pipeline import MISTAKE, StageFailure
from flows.processes import ProcessGroups, Stopped
from hiar.parameters import load_params, parse_params
from hiar.workspace import sole_use

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def client():
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client
        for run in client.read_flow_runs():
            client.delete_flow_run(run.id)


def test_a_stage_that_its_experiment_requests_again_is_the_same_run(client, monkeypatch):
    """As when an experiment whose worker died is resumed; another experiment or commit has its own run.

    The run's variables name the commit, which a worker without a working folder clones. If it does not complete, the
    experiment's stage fails.
    """
    from prefect import flow
    from prefect.states import Cancelled, Completed, Failed

    client.create_deployment(flow_id=client.create_flow(deployments.stage), name="stage")
    stage_runs, commit = [], ["a" * 40]
    monkeypatch.setattr(deployments, "_wait", lambda run, groups: stage_runs.append(run) or Completed())
    monkeypatch.setattr(deployments, "head_of", lambda folder: commit[0])
    monkeypatch.delenv("HIAR_PROJECT", raising=False)

    @flow
    def experiment():
        run = deployments._elsewhere("mine", load_params(ROOT / "params.yaml"))
        for stage, force in (("codec@0", False), ("codec@0", False), ("teacher@0", True)):
            run(stage, force, ProcessGroups())

    for _ in range(2):
        experiment()
    ids = [run.id for run in stage_runs]
    assert (ids[0], ids[3]) == (ids[1], ids[4])
    assert len(set(ids)) == 4

    @flow
    def resumed():
        for _ in range(2):
            deployments._elsewhere("mine", load_params(ROOT / "params.yaml"))("codec@0", False, ProcessGroups())
            commit[0] = "b" * 40

    resumed()
    variables = [client.read_flow_run(run.id).job_variables for run in stage_runs[-2:]]
    assert variables == [{"env": {checkout.COMMIT: letter * 40}} for letter in "ab"]
    assert [client.read_flow_run(one).parameters for one in (ids[0], ids[2])] == [
        {"stage": "codec@0", "name": "mine", "force": False},
        {"stage": "teacher@0", "name": "mine", "force": True},
    ]

    @flow
    def failing():
        for state, said in ((Failed(message="codec@0: loss is nan"), "codec@0: loss is nan"), (Cancelled(), None)):
            monkeypatch.setattr(deployments, "_wait", lambda run, groups, state=state: state)
            with pytest.raises(StageFailure) as failure:
                deployments._elsewhere("mine", load_params(ROOT / "params.yaml"))("codec@0", False, ProcessGroups())
            assert str(failure.value) == (said or "codec@0: ended as Cancelled")
            assert failure.value.code == MISTAKE  # it has been tried again there, and is not here

    failing()


def test_the_type_of_the_pool_of_stages_is_none_once_the_pool_is_deleted(client):
    from prefect.client.schemas.actions import WorkPoolCreate

    client.create_work_pool(WorkPoolCreate(name="gpus", type="kubernetes"))
    client.create_deployment(flow_id=client.create_flow(deployments.stage), name="stage", work_pool_name="gpus")
    assert kind_of_pool() == "kubernetes"
    client.delete_work_pool("gpus")
    assert kind_of_pool() is None


def test_an_experiment_waits_while_another_run_has_its_workspace(project, monkeypatch):
    attempts, begun = [], []
    monkeypatch.setattr(deployments, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(deployments, "sole_use", lambda *given: attempts.append(given) or sole_use(*given))
    monkeypatch.setattr(deployments, "bring_up_to_date", lambda *given: begun.append(given))
    with ThreadPoolExecutor(1) as pool:
        with sole_use(project.folder, None):
            waiting = pool.submit(deployments.experiment, force=True, return_state=True)
            wait_until(lambda: len(attempts) > 2 or waiting.done())
            assert not waiting.done()
            assert not begun
        assert waiting.result(60).is_completed()
    assert begun == [(project.folder, True, None)]


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_a_stage_requests_its_gpus_and_memory_from_its_pool(kind, client, monkeypatch):
    """By variables of our template for that kind of pool, which puts them where its workers read them."""
    from prefect import flow
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.states import Completed
    from prefect.utilities.templating import apply_values

    template = json.loads((ROOT / "infra" / "pools" / f"{kind}.json").read_text())
    client.create_work_pool(WorkPoolCreate(name=kind, type=kind, base_job_template=template))
    monkeypatch.setenv("HIAR_PROJECT", str(ROOT))  # so that no commit needs to be passed
    flow_id = client.create_flow(deployments.stage)
    client.create_deployment(flow_id=flow_id, name="stage", work_pool_name=kind)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["runtime"] |= {"device": "cuda", "processes": 8, "memory_gb": 96.5}
    begun = []
    monkeypatch.setattr(deployments, "_wait", lambda run, groups: begun.append(run) or Completed())

    @flow
    def experiment(params):
        run = deployments._elsewhere(None, params)
        for stage in ("codec@0", "distill@0-hiar"):
            run(stage, False, ProcessGroups())

    experiment(parse_params(tree, Path("params.yaml")))
    experiment(load_params(ROOT / "params.yaml"))
    requested = [client.read_flow_run(run.id).job_variables for run in begun]
    assert requested[2:] == [{}, {}]
    for count, variables in zip((1, 8), requested[:2], strict=True):
        jsonschema.validate(variables, template["variables"])
        made = apply_values(template["job_configuration"], variables)
        if kind == "process":
            assert variables == {}
        elif kind == "docker":
            (cards,) = made["container_create_kwargs"]["device_requests"]
            assert (cards["Count"], made["mem_limit"]) == (-1, "96500000000")
        else:
            (container,) = made["job_manifest"]["spec"]["template"]["spec"]["containers"]
            for wanted in container["resources"].values():
                assert (wanted["nvidia.com/gpu"], wanted["memory"]) == (count, "96.5G")
    client.delete_work_pool(kind)


def test_a_run_that_has_just_crashed_is_waited_for_in_case_it_is_rescheduled(client, monkeypatch):
    from prefect import flow
    from prefect.states import Completed, Crashed, Running

    monkeypatch.setattr(deployments, "POLL_SECONDS", 0.05)
    run = client.create_flow_run(flow(lambda: None, name="nothing"), state=Running())
    client.set_flow_run_state(run.id, Crashed(), force=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(deployments._wait, run, ProcessGroups())
        assert not wait([waiting], 1).done
        client.set_flow_run_state(run.id, Completed(), force=True)
        assert waiting.result(60).is_completed()
    client.set_flow_run_state(run.id, Crashed(), force=True)
    monkeypatch.setattr(deployments, "CRASHED_SECONDS", 0.0)  # as if it had crashed long ago
    assert deployments._wait(run, ProcessGroups()).is_crashed()


def test_a_stopped_flow_does_not_wait_for_stages_that_go_on(client, monkeypatch):
    from prefect import flow
    from prefect.states import Running

    monkeypatch.setattr(deployments, "POLL_SECONDS", 0.05)
    run, groups = client.create_flow_run(flow(lambda: None, name="nothing"), state=Running()), ProcessGroups()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(deployments._wait, run, groups)
        groups.stop()
        with pytest.raises(Stopped):
            waiting.result(60)


def test_a_folder_is_scored_on_a_device_that_nothing_else_uses_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setenv("HIAR_DEVICES", "7,8")
    monkeypatch.setenv("HIAR_DEVICE_LOCKS", str(tmp_path / "locks"))
    seen = []

    def score(*command, variables):
        with take_devices(1) as others:
            seen.append((command, variables["CUDA_VISIBLE_DEVICES"], others))

    monkeypatch.setattr(deployments, "_hiar", score)
    deployments.score.fn("videos", "figures.json")
    assert seen == [(("score", "videos", "--out", "figures.json"), "7", ["8"])]


def test_a_deployed_stage_has_one_device_per_process(client, project, tmp_path, monkeypatch):
    monkeypatch.setenv("HIAR_DEVICES", "7,8,9")
    monkeypatch.setenv("HIAR_DEVICE_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    one_thread = {"device": "cpu", "precision": "no", "checkpointing": False, "threads": 1, "variant_threads": 1}
    project.change(runtime=one_thread | {"checkpoint_minutes": 5.0, "processes": 2})
    for name in ("codec-0", "distill-0-hiar"):
        project.order(name, "note CUDA_VISIBLE_DEVICES")
    for stage in ("codec@0", "distill@0-hiar"):
        assert deployments.stage(stage=stage, return_state=True).is_completed()
    noted = [line for line in project.events() if not line.startswith(("begin", "end"))]
    assert noted == ["7 codec-0", "7,8 distill-0-hiar"]
    (project.folder / "experiments").mkdir()
    (project.folder / "experiments" / "other.yaml").write_text("seeds: [1]\n")
    (project.folder / "runs" / "other").mkdir(parents=True)
    shutil.copy("stage.py", project.folder / "runs" / "other")
    (project.folder / ".dvcignore").touch()
    (project.folder / "hiar").mkdir()
    assert deployments.stage(stage="codec@1", name="other", return_state=True).is_completed()
    found = {run.name: run.tags for run in client.read_flow_runs()}
    assert found.keys() == {"default codec@0", "default distill@0-hiar", "other codec@1"}
    assert set(found["default codec@0"]) == {"experiment:default", "commit:none", "seed:0"}
    assert set(found["other codec@1"]) == {"experiment:other", "commit:none", "seed:1"}
    project.order("codec-0", "say error: params.yaml: codec: no", "exit 2")
    failed = deployments.stage(stage="codec@0", force=True, return_state=True)
    assert failed.is_failed()
    assert "params.yaml: codec: no" in failed.message
