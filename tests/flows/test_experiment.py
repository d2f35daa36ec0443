import os
import re
import shutil
import subprocess
import sys
from functools import partial

import httpx
import pytest

from flows.cores import Cores
from flows.pipeline import StageFailure, is_current, reproduce, stale_stages
from flows.processes import ProcessGroups
from flows.remote import Remote, remote_of
from flows.showing import show
from hiar.parameters import load_params
from tests.storage.small_store import BUCKET, SmallStore

pytestmark = pytest.mark.usefixtures("prefect_server")


def run_flow(**options):
    """Run the flow; returns its failure, or None."""
    from flows.experiment import experiment

    state = experiment(return_state=True, **options)
    if state.is_completed():
        return None
    failure = state.result(raise_on_failure=False)
    assert isinstance(failure, StageFailure), failure
    return failure


def test_stages_run_in_order_and_side_by_side_and_never_again(project, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    # Each variant waits for the other: run in sequence, they would never end.
    project.order("distill-0-hiar", "touch hiar", "wait self-forcing")
    project.order("distill-0-self-forcing", "touch self-forcing", "wait hiar")
    assert run_flow() is None
    events = project.events()
    assert events[:2] == ["begin codec-0", "end codec-0"]
    assert events[-2:] == ["begin score", "end score"]
    assert stale_stages(project.folder) == []
    assert run_flow() is None
    assert project.events() == events


def artifact_text(key):
    from prefect.artifacts import Artifact

    artifact = Artifact.get(key)
    assert artifact is not None, key
    return str(artifact.data)


def test_a_run_has_a_name_tags_and_the_comparison_with_its_pictures(project):
    from prefect import tags
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterTags
    from prefect.client.schemas.sorting import FlowRunSort

    with tags("of its user's"):
        assert run_flow() is None
    assert "HiAR" in artifact_text("default-comparison")
    assert (project.folder / "reports" / "contact_sheet.png").as_uri() in artifact_text("default-contact-sheet")
    with get_client(sync_client=True) as client:
        # The server's runs include those of other tests.
        of_flow = FlowFilter(name=FlowFilterName(any_=["experiment"]))
        tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=["experiment:default"]))
        (run,) = client.read_flow_runs(
            flow_filter=of_flow, flow_run_filter=tagged, sort=FlowRunSort.START_TIME_DESC, limit=1
        )
    assert run.name == "default"  # followed by the commit, in a git repository
    assert set(run.tags) == {"experiment:default", "commit:none", "seed:0", "of its user's"}


def test_an_experiment_has_artifacts_of_its_own_whose_links_open_on_any_machine(project, tmp_path, monkeypatch):
    from prefect import flow

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    workspace = tmp_path / "runs" / "smoke-1.3b+table1"
    project.dvc("repro")
    (project.folder / "hiar").mkdir()
    shutil.copytree(project.folder / "metrics", workspace / "metrics")
    shutil.copy(project.folder / "params.yaml", workspace)
    (workspace / "hiar").symlink_to(project.folder / "hiar")
    (workspace / "reports").mkdir()
    (workspace / "reports" / "index.html").write_text("<p>the report")
    with SmallStore() as store:
        settings = f"url = s3://{BUCKET}/hiar\n    endpointurl = {store.url}\n    region = x\n"
        settings += "    access_key_id = somebody\n    secret_access_key = hidden-from-all\n"
        for folder in (project.folder, workspace):
            (folder / ".dvc").mkdir(exist_ok=True)
            (folder / ".dvc" / "config").write_text(f"[core]\n    no_scm = true\n['remote \"s\"']\n    {settings}")
        messages = []
        showing = flow(show)
        showing(workspace, Remote(workspace, "s"), messages.append)
        link = re.search(r"\((http://[^)]*)\)", artifact_text("smoke-1-3b-table1-report"))[1]
        assert httpx.get(link, trust_env=False).text == "<p>the report"
        assert "hidden-from-all" not in link
        assert "file:" in artifact_text("smoke-1-3b-table1-contact-sheet")  # there is no sheet to store
        away = Remote(workspace, "s")
        away.away = True  # as found by a stage
        showing(workspace, away, messages.append)
        assert "file:" in artifact_text("smoke-1-3b-table1-report")
        assert messages == []
        store.refusal = (403, "AccessDenied")
        (workspace / "reports" / "index.html").write_text("<p>another")
        showing(workspace, Remote(workspace, "s"), messages.append)
        assert "file:" in artifact_text("smoke-1-3b-table1-report")
        (line,) = messages
        assert line.startswith(f"the report is not in the store: s3://{BUCKET}/hiar: access is denied")
        store.shutdown()
    assert "HiAR" in artifact_text("smoke-1-3b-table1-comparison")


def test_a_mistake_is_not_retried_and_stops_only_the_stages_that_need_it(project, tmp_path_factory, monkeypatch):
    """Outputs of earlier stages are pushed; only students of complete experiments are registered."""
    store, registered = tmp_path_factory.mktemp("remote"), []
    with (project.folder / ".dvc" / "config").open("a") as config:
        config.write(f"    remote = store\n['remote \"store\"']\n    url = {store}\n")
    monkeypatch.setattr("flows.models.register_models", registered.append)
    project.order("distill-0-hiar", "say error: loss is nan", "exit 2")
    failure = run_flow()
    assert failure is not None
    assert (failure.stage, failure.code, str(failure)) == ("distill@0-hiar", 2, "distill@0-hiar: loss is nan")
    assert project.times_begun("distill-0-hiar") == 1
    assert project.times_begun("score") == 0
    assert [stage.name for stage in stale_stages(project.folder)] == ["distill@0-hiar", "score"]
    assert list(store.glob("files/md5/*/*"))
    assert registered == []
    project.order("distill-0-hiar")
    assert run_flow() is None
    assert [remote.workspace for remote in registered] == [project.folder]


# `python -m flows`, without the half minute before a retry.
WITHOUT_RETRIES = """
from flows import experiment
from flows.__main__ import main

experiment.run_stage = experiment.run_stage.with_options(retries=0)
raise SystemExit(main())
"""


def test_a_run_ends_with_the_exit_code_of_the_stage_that_failed(project, prefect_server):
    project.order("codec-0", "say error: is out of memory", "exit 5")
    environment = os.environ | {
        "PREFECT_API_URL": prefect_server,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_RETRIES], cwd=project.folder, env=environment, capture_output=True, text=True
    )
    assert run.stderr.splitlines()[-1] == "error: codec@0: is out of memory"
    assert run.returncode == 5
    assert project.times_begun("codec-0") == 1


def test_a_crash_is_tried_again(project):
    project.order("codec-0", "crash-once crashed")
    assert run_flow() is None
    assert project.times_begun("codec-0") == 2


class RecordingCores(Cores):
    """Records how many cores each stage requests."""

    def __init__(self, count, wanted):
        super().__init__(count)
        self.wanted = wanted

    def take(self, wanted):
        self.wanted.append(wanted)
        return super().take(wanted)


def test_force_runs_every_stage_again_each_on_the_cores_of_all_its_processes(project, monkeypatch):
    wanted = []
    monkeypatch.setattr("flows.experiment.Cores", partial(RecordingCores, wanted=wanted))
    runtime = load_params(project.folder / "params.yaml").runtime.model_copy(
        update={"threads": 5, "variant_threads": 3, "processes": 2}
    )
    project.change(runtime=runtime.model_dump(mode="json"))
    assert run_flow() is None
    assert run_flow(force=True) is None
    assert project.times_begun("codec-0") == project.times_begun("score") == 2
    assert sorted(wanted) == sorted(2 * [5, 2 * 3, 2 * 3, 5])  # codec, two distillations, score


def test_a_forced_stage_that_ran_on_another_machine_is_not_run_here_again(project, tmp_path):
    """Its outputs are fetched if the machines share no workspace; it takes no core of this machine."""
    from prefect.logging import disable_run_logger

    from flows.experiment import run_stage

    config = project.folder / ".dvc" / "config"
    config.write_text(
        config.read_text() + f"    remote = store\n['remote \"store\"']\n    url = {tmp_path / 'store'}\n"
    )
    other = type(project)(tmp_path / "other")
    (other.folder / ".dvc").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "stage.py", ".dvc/config"):
        shutil.copy(project.folder / name, other.folder / name)
    groups, requests, cores = ProcessGroups(), [], RecordingCores(1, [])

    def elsewhere(stage, force, _):
        requests.append((stage, force))
        reproduce(other.folder, stage, groups, print, force=force, remote=remote_of(other.folder))

    with disable_run_logger():
        found = run_stage.fn(project.folder, "codec@0", True, groups, cores, 1, remote_of(project.folder), elsewhere)
    assert (found, requests, cores.wanted) == (None, [("codec@0", True)], [0])
    assert (other.times_begun("codec-0"), project.times_begun("codec-0")) == (1, 0)
    assert is_current(project.folder, "codec@0")
