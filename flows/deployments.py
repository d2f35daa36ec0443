"""The flows of prefect.yaml, as a server's workers run them; the project is the current folder."""

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
# After this time the watcher (flows/stack/watcher.py) has rescheduled a crashed run, or its attempts are used up.
CRASHED_SECONDS = 60.0

NAME = r"^[a-z0-9]+([-.][a-z0-9]+)*(\+[a-z0-9]+([-.][a-z0-9]+)*)*$"
STAGE = r"^[a-z][a-z-]*(@[a-z0-9._-]+)?$"
Experiment = Annotated[
    str | None,
    Field(
        pattern=NAME,
        max_length=200,
        description="A file of experiments/ without .yaml, or several as ONE+OTHER; none: params.yaml alone.",
    ),
]
Force = Annotated[bool, Field(description="Also run stages that are up to date.")]
StageName = Annotated[str, Field(pattern=STAGE, max_length=200, description="As in dvc.yaml: codec@0.")]
Spread = Annotated[bool, Field(description="Run each stage as a flow run of its own, in the work pool of stages.")]
Folder = Annotated[str, Field(min_length=1, description="A folder of mp4 files, relative to the project's folder.")]
Out = Annotated[str, Field(pattern=r"\.json$", description="The file of scores, relative to the project's folder.")]
Delete = Annotated[bool, Field(description="Delete; otherwise only list what would be deleted.")]


@flow(name="experiment", flow_run_name=run_name, persist_result=False)
def experiment(name: Experiment = None, force: Force = False, spread: Spread = False) -> State[Any] | None:
    """Bring an experiment up to date: stages that changed since its last run are run again.

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
            except InUse as error:  # by another run, or by a stage of an earlier attempt that outlived it
                if not told:
                    get_run_logger().info("waiting: %s", error)
                told = True
                time.sleep(POLL_SECONDS)
    except UserError as error:
        return Failed(message=str(error), data=error)


@flow(name="stage", flow_run_name=run_name, persist_result=False)
def stage(stage: StageName, name: Experiment = None, force: Force = False) -> State[Any] | None:
    """Run one stage of an experiment on devices of this machine that no other stage uses.

    A stage of several processes takes as many devices as runtime.processes says. The stages it needs must be up to
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
            # Prefect would only count a task's own state: "1/1 states failed" instead of the stage's message.
            return None if state.is_completed() else Failed(message=state.message)
    except UserError as error:
        return Failed(message=str(error), data=error)
    finally:
        groups.stop()


@flow(name="score", flow_run_name="score {folder}", persist_result=False)
def score(folder: Folder, out: Out = "scores.json") -> State[Any] | None:
    """Score the videos of a folder with `hiar score`."""
    with take_devices(1) as devices:
        return _hiar("score", folder, "--out", out, variables=environment_on(devices))


@flow(name="retention", flow_run_name="retention", persist_result=False)
def retention(
    last: Annotated[int, Field(ge=0, description="Runs of each experiment that are kept.")] = 3, delete: Delete = False
) -> State[Any] | None:
    """Delete from the store what no run needs, with `hiar storage gc`, after fetching all commits.

    Fails if they cannot be fetched, as runs named by others' commits would not be kept.
    """
    try:
        fetch_commits(Path.cwd())
    except UserError as error:
        return Failed(message=str(error), data=error)
    return _hiar("storage", "gc", "--last", str(last), *(["--delete"] if delete else []))


def _hiar(*arguments: str, variables: dict[str, str] | None = None) -> State[Any] | None:
    """Run a `hiar` command; a failure becomes a state with the command's last line."""
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
    """A function that runs a stage as a flow run of its own, which a resumed experiment of the same commit finds again.

    If the stage works in a clone, it is of this experiment's commit, whatever has been deployed since.
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
    """The final state of a run; while the server is away, wait. Raises Stopped once the groups are stopped.

    This flow is ending then, and must not wait for a run that goes on without it.
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
