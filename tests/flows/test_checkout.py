"""The project's folder of a deployed run: a clone of the deployed commit, or the working folder of its machine."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import yaml
from waiting import wait_until

from flows import checkout
from flows.stack.watcher import SILENCE
from hiar.errors import UserError

PROJECT = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())
IDENTITY = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one commit, and a machine without any clone of it."""
    for name in (checkout.PROJECT, checkout.REPOSITORY, "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(checkout.CLONES, str(tmp_path / "clones"))
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    for command in (["init", "--quiet"], ["add", "--all"], [*IDENTITY, "commit", "--quiet", "--message", "one"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    subprocess.run(["git", "remote", "add", "origin", "https://me:hidden@example.org/hiar"], cwd=folder, check=True)
    return folder


def test_a_deployment_stores_the_commit_and_the_repository_without_a_password(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert checkout.describe()["repository"] == "https://example.org/hiar"
    assert PROJECT["pull"] == [
        {"flows.checkout.open_project": {"repository": "{{ source.repository }}", "commit": "{{ source.commit }}"}}
    ]


def test_heartbeats_of_deployed_runs_are_frequent_enough_for_the_watcher():
    for deployment in PROJECT["deployments"]:
        given = deployment["work_pool"]["job_variables"]["env"]
        assert 2 * int(given["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) < SILENCE["RUNNING"].total_seconds()


@pytest.mark.parametrize(
    "address", ["ssh://git@example.org/hiar", "git@example.org:hiar", "ssh://git:hidden@example.org/hiar"]
)
def test_the_ssh_user_of_a_repository_is_kept(repository, monkeypatch, address):
    monkeypatch.chdir(repository)
    subprocess.run(["git", "remote", "set-url", "origin", address], check=True)
    assert checkout.describe()["repository"] == address.replace(":hidden", "")


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
    (made / "notes").write_text("of a run")
    subprocess.run(["git", *IDENTITY, "tag", "v1"], cwd=made, check=True)
    assert checkout.commit_of(made) == commit[:7]
    (made / "dvc.yaml").write_text("stages: {changed: null}\n")
    assert checkout.commit_of(made) == f"{commit[:7]}+"
    assert (checkout.commit_of(tmp_path), checkout.head_of(tmp_path)) == ("", "")
    monkeypatch.setenv(checkout.COMMIT, commit)  # a commit deployed since does not affect this run
    assert checkout.open_project(repository.as_uri(), "0" * 40) == {"directory": str(made)}
    monkeypatch.setenv(checkout.PROJECT, str(repository))
    assert checkout.open_project("", "") == {"directory": str(repository)}
    monkeypatch.setenv(checkout.PROJECT, str(tmp_path))
    with pytest.raises(UserError, match=r"HIAR_PROJECT = .*: holds no dvc\.yaml; set it to the project's folder"):
        checkout.open_project(repository.as_uri(), commit)


def test_a_clone_has_the_base_models_which_are_not_in_the_repository(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    commit = checkout.describe()["commit"]
    monkeypatch.setenv(checkout.MODELS, str(tmp_path / "base"))
    with pytest.raises(UserError, match=r"HIAR_MODELS = .*base: is not a folder; name the folder of the base models"):
        checkout.open_project(repository.as_uri(), commit)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "prompts.txt").write_text("a fox\n")
    for _ in range(2):
        made = Path(checkout.open_project(repository.as_uri(), commit)["directory"])
        assert (made / "models" / "prompts.txt").read_text() == "a fox\n"
    assert checkout.commit_of(made) == commit[:7]


@pytest.mark.parametrize(
    ("address", "commit", "line"),
    [
        ("", "0" * 40, "HIAR_REPOSITORY: is not set"),
        ("--upload-pack=touch", "0" * 40, "HIAR_REPOSITORY: is not set"),
        ("here", "main", "commit = main: is not a commit hash"),
        ("here", "0" * 7, "commit = 0000000: is not a commit hash"),  # a short hash may become ambiguous
        ("here", f"{'0' * 40} --force", "commit = 0+ --force: is not a commit hash"),
        ("file:///nowhere/at/all", "0" * 40, "git clone: "),
        ("git://me:hidden@127.0.0.1:9/x", "0" * 40, "git clone: "),
    ],
)
def test_a_failed_clone_is_one_line_and_leaves_nothing_behind(repository, tmp_path, address, commit, line):
    with pytest.raises(UserError, match=line) as raised:
        checkout.open_project(address, commit)
    assert "\n" not in str(raised.value)
    assert "hidden" not in str(raised.value)
    assert not (tmp_path / "clones" / commit).exists()


def test_a_failed_checkout_does_not_block_the_next_attempt(repository, tmp_path):
    """As for a commit that has not been pushed yet; the failed attempt leaves no clone."""
    wanted = "0" * 40
    for _ in range(2):
        with pytest.raises(UserError, match="git checkout: "):
            checkout.open_project(repository.as_uri(), wanted)
    assert [path.name for path in (tmp_path / "clones").iterdir()] == ["lock"]


def test_a_run_without_its_project_logs_why_and_crashes_only_if_a_retry_may_help(
    repository, prefect_server, monkeypatch
):
    """The state stays, though its worker reports afterwards that the process exited."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
    from prefect.states import Crashed, Pending

    def logged(run):
        return [log.message for log in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))]

    with get_client(sync_client=True) as client:
        for address, state in ((repository.as_uri(), "Failed"), ("/nowhere", "Crashed")):
            run = client.create_flow_run(flow(lambda: None, name="nothing"), state=Pending())
            monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run.id))
            with pytest.raises(UserError) as raised:
                checkout.open_project(address, "0" * 40)
            client.set_flow_run_state(run.id, Crashed(message="Process exited with status code: 1."))
            assert client.read_flow_run(run.id).state.name == state
            wait_until(partial(logged, run))
            assert logged(run) == [str(raised.value)]
            client.delete_flow_run(run.id)


def test_a_resumed_run_keeps_the_commit_it_began_with(repository, prefect_server, monkeypatch):
    """Even if another one has been deployed since; the next run begins with that."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    def commit(what):
        (repository / "notes").write_text(what)
        subprocess.run(["git", "add", "notes"], cwd=repository, check=True)
        subprocess.run(["git", *IDENTITY, "commit", "--quiet", "--message", what], cwd=repository, check=True)
        return checkout.head_of(repository)

    first, second = commit("first"), commit("second")
    with get_client(sync_client=True) as client:
        runs = [client.create_flow_run(flow(lambda: None, name="nothing"), state=Running()) for _ in range(2)]
        begun = []
        for run, deployed in ((runs[0], first), (runs[0], second), (runs[1], second)):
            monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(run.id))
            begun.append(Path(checkout.open_project(repository.as_uri(), deployed)["directory"]).name)
        for run in runs:
            client.delete_flow_run(run.id)
    assert begun == [first, first, second]


def test_the_workers_repository_address_and_the_clones_code_take_precedence(repository, tmp_path, monkeypatch):
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=repository, text=True).strip()
    monkeypatch.setenv(checkout.REPOSITORY, repository.as_uri())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "installed"))
    for place in (tmp_path / "installed", repository):
        place.mkdir(exist_ok=True)
    made = checkout.open_project("https://127.0.0.1:9/of-another-network", commit)["directory"]
    command = [sys.executable, "-c", "import sys; print(*sys.path, sep='\\n')"]
    places = subprocess.check_output(command, text=True, env=os.environ, cwd=tmp_path).split("\n")
    assert places.index(made) < places.index(str(tmp_path / "installed"))
    assert sys.path[0] == made


def test_runs_that_begin_at_once_share_one_clone(repository, tmp_path):
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=repository, text=True).strip()
    together = threading.Barrier(4)

    def begin(_):
        together.wait()
        return checkout.open_project(repository.as_uri(), commit)["directory"]

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(begin, range(4))) == {str(tmp_path / "clones" / commit)}
