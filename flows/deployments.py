"""The flows of prefect.yaml, as a server and its workers run them, in the project that is the current folder."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.runtime import flow_run
from prefect.states import Failed
from pydantic import Field

from flows.asked import DEPLOYMENT, job_variables, kind_of_pool
from flows.checkout import COMMIT, PROJECT, fetch_commits, head_of
from flows.cores import Cores
from flows.devices import environment_on, take_devices
from flows.experiment import bring_up_to_date, run_stage
from flows.pipeline import MISTAKE, StageFailure
from flows.processes import ProcessGroups, stage_environment
from flows.remote import remote_of
from flows.showing import run_name, tag
from hiar.config import Params
from hiar.errors import InUse, UserError
from hiar.workspace import experiment_params, open_workspace, sole_use

POLL_SECONDS = 0.5
# A run that crashed is scheduled again by the watcher (flows/stack/watcher.py), or has had all its attempts.
CRASHED_SECONDS = 60.0

NAME = r"^[a-z0-9]+([-.][a-z0-9]+)*(\+[a-z0-9]+([-.][a-z0-9]+)*)*$"
STAGE = r"^[a-z][a-z-]*(@[a-z0-9._-]+)?$"
Experiment = Annotated[
    str | None,
    Field(
        pattern=NAME,
        max_length=200,
        description="A file of experiments/ without .yaml, or several as ONE+OTHER; none: params.yaml as it is.",
    ),
]
Force = Annotated[bool, Field(description="Run what is up to date, too.")]
StageName = Annotated[str, Field(pattern=STAGE, max_length=200, description="As dvc.yaml has it: codec@0.")]
Spread = Annotated[bool, Field(description="Each stage is a run of its own, for the workers of the pool of stages.")]
Folder = Annotated[str, Field(min_length=1, description="A folder of mp4 files, seen from the project's.")]
Out = Annotated[str, Field(pattern=r"\.json$", description="The file of scores, seen from the project's folder.")]
Delete = Annotated[bool, Field(description="Delete it; else it is only told what would be.")]


@flow(name="experiment", flow_run_name=run_name, persist_result=False)
def experiment(name: Experiment = None, force: Force = False, spread: Spread = False) -> State[Any] | None:
    """Bring an experiment up to date: what has changed since its last run is run again.

    Waits while its workspace is in use. Fails as flows.experiment does.
    """
    root = Path.cwd()
    try:
        params = experiment_params(root, name)
        tag(name, params)
        told = False
        while True:
            try:
                with sole_use(root, name):
                    elsewhere = _elsewhere(name, params) if spread else None
                    return bring_up_to_date(open_workspace(root, name), force, elsewhere)
            except InUse as error:  # by another experiment's run, or by a stage of this one that went on when it died
                if not told:
                    get_run_logger().info("waiting: %s", error)
                told = True
                time.sleep(POLL_SECONDS)
    except UserError as error:
        return Failed(message=str(error), data=error)


@flow(name="stage", flow_run_name=run_name, persist_result=False)
def stage(stage: StageName, name: Experiment = None, force: Force = False) -> State[Any] | None:
    """Run one stage of an experiment on devices of this machine that no other stage has.

    One that is shared out to processes takes as many as runtime.processes says. The stages it needs have to be up to
    date.
    """
    root, groups = Path.cwd(), ProcessGroups()
    try:
        params = experiment_params(root, name)
        tag(name, params)
        workspace = open_workspace(root, name)
        with take_devices(params.runtime.processes_of(stage)) as devices:
            get_run_logger().info("on %s", ", ".join(devices))
            variables = environment_on(devices)
            remote = remote_of(workspace)
            state = run_stage(
                workspace, stage, force, groups, Cores(1), 1, remote, variables=variables, return_state=True
            )
            # A task's state as it is would only be counted: "1/1 states failed" in place of the stage's line.
            return None if state.is_completed() else Failed(message=state.message)
    except UserError as error:
        return Failed(message=str(error), data=error)
    finally:
        groups.stop()


@flow(name="score", flow_run_name="score {folder}", persist_result=False)
def score(folder: Folder, out: Out = "scores.json") -> State[Any] | None:
    """Score the videos of a folder, as `hiar score` does."""
    with take_devices(1) as devices:
        return _hiar("score", folder, "--out", out, variables=environment_on(devices))


@flow(name="retention", flow_run_name="retention", persist_result=False)
def retention(
    last: Annotated[int, Field(ge=0, description="Runs of each experiment that are kept.")] = 3, delete: Delete = False
) -> State[Any] | None:
    """Delete from the store what nothing keeps, as `hiar storage gc` does, after all commits have been fetched.

    Fails where they cannot be: what commits of others name would count for nothing.
    """
    try:
        fetch_commits(Path.cwd())
    except UserError as error:
        return Failed(message=str(error), data=error)
    return _hiar("storage", "gc", "--last", str(last), *(["--delete"] if delete else []))


def _hiar(*arguments: str, variables: dict[str, str] | None = None) -> State[Any] | None:
    """Run a command of `hiar`; a failure is a state with its last line."""
    groups, lines = ProcessGroups(), [""]

    def heard(line: str) -> None:
        lines.append(line)
        get_run_logger().info(line)

    command = [sys.executable, "-m", "hiar", *arguments]
    try:
        code = groups.run(command, Path.cwd(), {**stage_environment(), **(variables or {})}, heard)
    finally:
        groups.stop()
    return None if code == 0 else Failed(message=lines[-1].removeprefix("error: ") or f"exit code {code}")


def _elsewhere(name: str | None, params: Params) -> Any:
    """What has a stage run as a run of its own, found again by an experiment that is taken up on the same commit.

    A clone of that stage's is of this experiment's commit, whatever has been deployed since.
    """
    parent, kind, commit = flow_run.id, kind_of_pool(), head_of(Path.cwd())
    of_run = {"env": {COMMIT: commit}} if commit and PROJECT not in os.environ else {}

    def run(stage: str, force: bool, groups: ProcessGroups) -> None:
        begun = run_deployment(
            DEPLOYMENT,
            parameters={"stage": stage, "name": name, "force": force},
            job_variables=job_variables(kind, params, stage) | of_run,
            idempotency_key=f"{parent}:{stage}:{commit}",
            timeout=0,
        )
        assert isinstance(begun, FlowRun)  # no coroutine, in a thread
        state = _wait(begun, groups)
        if not state.is_completed():
            raise StageFailure(stage, MISTAKE, state.message or f"{stage}: ended as {state.name}")

    return run


def _wait(run: FlowRun, groups: ProcessGroups) -> State[Any]:
    """The state in which a run ends; a server that is away for a while is waited for. Raises Stopped with the groups.

    This flow ends then, and is not to wait for what goes on without it.
    """
    from httpx import HTTPError

    with get_client(sync_client=True) as client:
        while True:
            time.sleep(POLL_SECONDS)
            groups.check()
            try:
                state = client.read_flow_run(run.id).state
            except HTTPError:
                continue
            if state is None or not state.is_final():
                continue
            if state.is_crashed() and time.time() - state.timestamp.timestamp() < CRASHED_SECONDS:
                continue
            return state
