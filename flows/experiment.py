"""The experiment flow: one task per stale stage, in DVC's order, as many at a time as cores allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Failed

from flows.cores import Cores, usable_cores
from flows.pipeline import MISTAKE, StageFailure, is_current, reproduce, stale_stages
from flows.processes import ProcessGroups
from flows.remote import Remote, remote_of
from flows.showing import run_name, show, tag
from flows.storing import store_and_register
from hiar.errors import UserError
from hiar.parameters import load_params
from hiar.workspace import experiment_params, open_workspace

# Runs a stage somewhere else, forced or not; raises StageFailure, and Stopped once the groups are stopped.
Elsewhere = Callable[[str, bool, ProcessGroups], None]


def _crashed(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a failed stage is worth another attempt, which resumes from its last checkpoint: not a user's mistake."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, StageFailure) and failure.code != MISTAKE


# DVC alone decides what is up to date, so Prefect keeps no results.
@task(
    task_run_name="{stage}",
    retries=2,
    retry_delay_seconds=[5, 30],  # some causes, such as a store under load, take longer than a second to pass
    retry_condition_fn=_crashed,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(
    workspace: Path,
    stage: str,
    force: bool,
    groups: ProcessGroups,
    cores: Cores,
    threads: int,
    remote: Remote | None,
    elsewhere: Elsewhere | None = None,
    variables: Mapping[str, str] | None = None,
) -> State[Any] | None:
    """Reproduce one stage; a failure is a state, not an exception, so that the log has one line and no traceback.

    ``elsewhere`` first runs it somewhere else, so that its outputs are found here (in a shared workspace) or fetched.
    ``variables``: additions to the stage's environment, which override those of this process.
    """
    logger = get_run_logger()
    try:
        if elsewhere is not None:
            elsewhere(stage, force, groups)
            if remote is None or is_current(workspace, stage):
                return None
        with cores.take(threads if elsewhere is None else 0):
            forced = force and elsewhere is None
            reproduce(workspace, stage, groups, logger.info, force=forced, remote=remote, variables=variables)
    except StageFailure as failure:
        return Failed(message=str(failure), data=failure)
    return None


@flow(name="experiment", flow_run_name=run_name, persist_result=False)
def experiment(name: str | None = None, force: bool = False) -> State[Any] | None:
    """Bring experiment ``name`` up to date (None: the default one); the project is the current folder.

    Fails with the StageFailure of the first stage that failed; stages that do not need it still run. Fails with a
    UserError if there is a mistake in the experiment, or its workspace is in use.
    """
    try:
        tag(name, experiment_params(Path.cwd(), name))
        return bring_up_to_date(open_workspace(Path.cwd(), name), force)
    except UserError as error:  # as with a stage: a line, and no traceback
        return Failed(message=str(error), data=error)


def bring_up_to_date(workspace: Path, force: bool, elsewhere: Elsewhere | None = None) -> State[Any] | None:
    """The flow's body; every stage runs here, or ``elsewhere`` if that is given. Raises UserError."""
    runtime = load_params(workspace / "params.yaml").runtime
    groups, cores = ProcessGroups(), Cores(usable_cores(runtime))
    remote = remote_of(workspace)
    runs: dict[str, PrefectFuture[Any]] = {}
    try:
        for stage in stale_stages(workspace, force=force):
            runs[stage.name] = run_stage.submit(
                workspace,
                stage.name,
                force,
                groups,
                cores,
                (runtime.variant_threads if stage.of_variant else runtime.threads) * runtime.processes_of(stage.name),
                remote,
                elsewhere,
                wait_for=[runs[needed] for needed in stage.needs],
                return_state=False,
            )
        for run in runs.values():
            run.wait()
        if remote is not None:
            complete = all(run.state.is_completed() for run in runs.values())
            store_and_register(remote, groups, get_run_logger().info, complete)
    finally:
        groups.stop()
    failures = [run.state.result(raise_on_failure=False) for run in runs.values() if run.state.is_failed()]
    if failures:
        return Failed(message=str(failures[0]), data=failures[0])
    show(workspace, remote, get_run_logger().info)
    return None
