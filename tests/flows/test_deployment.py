"""prefect.yaml: its deployments name flows, fit their parameters, fire on schedule and hold no folder of anybody."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows import checkout
from hiar.errors import UserError

ROOT = Path(__file__).parents[2]
PROJECT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {one["name"]: one for one in PROJECT["deployments"]}
WHO = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]


def flow_of(name):
    from prefect.flows import load_flow_from_entrypoint

    with pytest.MonkeyPatch.context() as patch:  # Prefect leaves the script's folder in it, where others would find it
        patch.setattr("sys.path", [*sys.path])
        return load_flow_from_entrypoint(f"{ROOT / DEPLOYMENTS[name]['entrypoint']}")


@pytest.mark.parametrize("name", ["nightly", "any", "weekly"])
def test_parameters_are_those_of_the_flow(name):
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
def test_parameters_that_are_none_are_refused_before_anything_starts(name, given):
    from prefect.exceptions import ParameterBindError, ParameterTypeError, SignatureMismatchError

    with pytest.raises((ParameterBindError, ParameterTypeError, SignatureMismatchError)):
        flow_of(name).validate_parameters(given)
    if "name" in given or "stage" in given:
        assert "pattern" in str(flow_of(name).parameters.properties)  # the form of the pages checks it too


def test_parents_and_stages_have_pools_of_their_own():
    pools = {name: one["work_pool"]["name"] for name, one in DEPLOYMENTS.items()}
    assert pools["stage"] not in (pools["any"], pools["nightly"])


@pytest.mark.usefixtures("prefect_server")
def test_its_schedule_makes_runs():
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


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, and a machine that knows nothing of it."""
    for name in (checkout.PROJECT, checkout.REPOSITORY, "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(checkout.CLONES, str(tmp_path / "clones"))
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    for command in (["init", "--quiet"], ["add", "--all"], [*WHO, "commit", "--quiet", "--message", "one"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    subprocess.run(["git", "remote", "add", "origin", "https://me:hidden@example.org/hiar"], cwd=folder, check=True)
    return folder


def test_what_is_stored_is_the_commit_and_the_repository_without_a_password(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert checkout.describe()["repository"] == "https://example.org/hiar"
    assert PROJECT["pull"] == [
        {"flows.checkout.open_project": {"repository": "{{ source.repository }}", "commit": "{{ source.commit }}"}}
    ]


def test_a_worker_clones_the_commit_once_or_works_in_its_folder(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    commit = checkout.describe()["commit"]
    made = Path(checkout.open_project(repository.as_uri(), commit)["directory"])
    assert made == tmp_path / "clones" / commit
    assert (made / "dvc.yaml").exists()
    (made / "runs").mkdir()
    assert checkout.open_project(repository.as_uri(), commit) == {"directory": str(made)}
    assert (made / "runs").exists()
    assert checkout.commit_of(made) == commit[:7]
    monkeypatch.setenv(checkout.PROJECT, str(repository))
    assert checkout.open_project("", "") == {"directory": str(repository)}


@pytest.mark.parametrize(
    ("address", "commit", "line"),
    [
        ("", "0" * 40, "HIAR_REPOSITORY: is not set"),
        ("--upload-pack=touch", "0" * 40, "HIAR_REPOSITORY: is not set"),
        ("here", "main", "commit = main: is none"),
        ("file:///nowhere/at/all", "0" * 40, "git clone: "),
    ],
)
def test_what_cannot_be_cloned_is_one_line_and_leaves_no_clone(repository, tmp_path, address, commit, line):
    with pytest.raises(UserError, match=line) as raised:
        checkout.open_project(address, commit)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "clones" / commit).exists()
