"""MLflow sees every stage, and nothing that befalls it befalls the stage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hiar.io.tracking import tracked
from mlflow.tracking import MlflowClient

from hiar.config import Params
from hiar.io.artifacts import code_version
from hiar.parameters import load_params

PARAMS_FILE = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(PARAMS_FILE)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "HIAR_TRACKING", "HIAR_EXPERIMENT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose database is made once for all tests: that takes MLflow seconds."""
    folder = tmp_path_factory.mktemp("project")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder


@pytest.fixture
def workspace(project: Path, request: pytest.FixtureRequest) -> Path:
    """A workspace, and so an experiment, of its own."""
    (project / "hiar").mkdir(exist_ok=True)
    folder = project / "runs" / request.function.__name__
    folder.mkdir(parents=True)
    (folder / "hiar").symlink_to("../../hiar")
    return folder


class Records:
    """What MLflow keeps of an experiment."""

    def __init__(self, project: Path, experiment: str) -> None:
        self.client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
        self.experiment = self.client.get_experiment_by_name(f"hiar/{experiment}")
        assert self.experiment is not None
        runs = self.client.search_runs([self.experiment.experiment_id])
        self.parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        self.stages = [run for run in runs if "mlflow.parentRunId" in run.data.tags]

    def status(self) -> dict[str, str]:
        return {run.info.run_name: run.info.status for run in self.stages}


def test_a_stage_leaves_parameters_metrics_files_and_facts(
    params: Params, project: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    (workspace / "v.mp4").write_bytes(b"video")
    with tracked("distill", 3, "hiar", params, workspace) as run:
        for step in range(1500):
            run.log(step, {"loss": 1 / (step + 1), "critic": float(step)})
        run.tag("content", "abc")
        run.artifact(workspace / "v.mp4")
        deadline = time.monotonic() + 600  # for the first look at the machine, by another thread
        while not any(name.startswith("system/") for name in Records(project, workspace.name).stages[0].data.metrics):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    records = Records(project, workspace.name)
    (parent,), (stage,) = records.parents, records.stages
    assert (parent.info.status, stage.info.status) == ("FINISHED", "FINISHED")
    tags = stage.data.tags
    assert (tags["stage"], tags["seed"], tags["variant"], tags["content"]) == ("distill", "3", "hiar", "abc")
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert tags["commit"].startswith(code_version()["commit"])
    assert tags["hardware"]
    for entry in (parent, stage):
        assert entry.data.params["teacher.training.optimizer.adamw.betas"] == "[0.9, 0.99]"
        assert entry.data.params["variants.hiar.order"] == "step_first"
    history = records.client.get_metric_history(stage.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / (step + 1)) for step in range(1500)]
    assert [file.path for file in records.client.list_artifacts(stage.info.run_id)] == ["v.mp4"]
    assert records.experiment.artifact_location == (project / "mlruns").as_uri()


def test_stages_of_equal_parameters_share_a_parent(params: Params, project: Path, workspace: Path) -> None:
    with tracked("codec", 0, None, params, workspace):
        pass
    with pytest.raises(ZeroDivisionError), tracked("teacher", 0, None, params, workspace):
        raise ZeroDivisionError
    assert [run.info.status for run in Records(project, workspace.name).parents] == ["FAILED"]
    with tracked("teacher", 0, None, params.model_copy(update={"seeds": [7]}), workspace):
        pass
    records = Records(project, workspace.name)
    assert len(records.parents) == 2
    assert sorted(run.info.status for run in records.stages) == ["FAILED", "FINISHED", "FINISHED"]


def test_the_project_itself_is_the_default_experiment_and_another_name_can_be_given(
    params: Params, project: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracked("codec", 0, None, params, project):
        pass
    monkeypatch.setenv("HIAR_EXPERIMENT", "given")
    with tracked("teacher", 0, None, params, workspace):
        pass
    assert Records(project, "default").status() == {"codec 0 -": "FINISHED"}
    assert Records(project, "given").status() == {"teacher 0 -": "FINISHED"}


CHILD = """
import sys, time
from pathlib import Path
from hiar.parameters import load_params
from hiar.io.tracking import tracked
with tracked("distill", 0, sys.argv[3], load_params(Path(sys.argv[1])), Path(sys.argv[2])):
    print("in the body", flush=True)
    sys.stdin.read()
"""


def start_child(workspace: Path, variant: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(PARAMS_FILE), str(workspace), variant]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_variants_start_together_and_a_killed_one_is_marked_when_its_stage_starts_again(
    params: Params, tmp_path: Path
) -> None:
    killed, other = start_child(tmp_path, "hiar"), start_child(tmp_path, "self-forcing")
    for child in (killed, other):
        assert child.stdout is not None
        assert child.stdout.readline() == "in the body\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait(300)
    assert set(Records(tmp_path, "default").status().values()) == {"RUNNING"}
    with tracked("distill", 0, "hiar", params, tmp_path), tracked("distill", 0, "self-forcing", params, tmp_path):
        found = [(run.data.tags["variant"], run.info.status) for run in Records(tmp_path, "default").stages]
        still_alive = ("self-forcing", "RUNNING")
        assert sorted(found) == [("hiar", "KILLED"), ("hiar", "RUNNING"), still_alive, still_alive]
    other.communicate("", timeout=300)
    assert other.returncode == 0
    records = Records(tmp_path, "default")
    assert len(records.parents) == 1
    assert sorted(run.info.status for run in records.stages) == ["FINISHED", "FINISHED", "FINISHED", "KILLED"]


OFFLINE = """
import json, sys
from pathlib import Path
from hiar.parameters import load_params
from hiar.io.tracking import tracked
with tracked("codec", 0, None, load_params(Path(sys.argv[1])), Path(sys.argv[2])) as run:
    run.log(0, {"loss": 1.0})
    run.tag("content", "abc")
    run.artifact(Path("nothing"))
print(json.dumps("mlflow" in sys.modules))
"""


@pytest.fixture
def dead_port() -> Iterator[int]:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_dead_port_costs_one_line_and_no_import(tmp_path: Path, dead_port: int) -> None:
    result = run_offline(tmp_path, MLFLOW_TRACKING_URI=f"http://somebody:secret@127.0.0.1:{dead_port}")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("warning: MLflow does not record this run (ConnectionRefusedError")
    assert "secret" not in result.stderr


def test_a_server_of_this_machine_is_asked_past_a_proxy(tmp_path: Path, dead_port: int) -> None:
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), f"http://127.0.0.1:{dead_port}")
    result = run_offline(
        tmp_path, MLFLOW_TRACKING_URI=f"http://localhost:{dead_port}", NO_PROXY="example.org", **proxies
    )
    assert result.stderr.startswith("warning: MLflow does not record this run (ConnectionRefusedError")


def test_off_is_off(tmp_path: Path) -> None:
    assert run_offline(tmp_path, HIAR_TRACKING="off").stderr == ""


def run_offline(workspace: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process whose stage runs without MLflow, checked to succeed and to leave no trace."""
    command = [sys.executable, "-c", OFFLINE, str(PARAMS_FILE), str(workspace)]
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) is False
    assert list(workspace.iterdir()) == []
    return result


def warnings_of(captured: Any) -> list[str]:
    return [line for line in captured.readouterr().err.splitlines() if line]


def test_a_server_that_never_answers_costs_one_line(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with tracked("codec", 0, None, params, tmp_path) as run:
            run.log(0, {"loss": 1.0})
    (line,) = warnings_of(capsys)
    assert line.startswith("warning: MLflow does not record this run (MlflowException")


def test_a_database_that_breaks_on_the_way_costs_one_line(
    params: Params, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(project / "mlflow.db", tmp_path)
    with tracked("codec", 0, None, params, tmp_path) as run:
        run.log(0, {"loss": 1.0})
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("DROP TABLE latest_metrics")
            database.execute("DROP TABLE tags")
        run.tag("content", "abc")
        run.tag("path", "somewhere")
    (line,) = warnings_of(capsys)
    assert line.startswith("warning: MLflow does not record this run (")


def test_without_mlflow_installed_it_costs_one_line(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with tracked("codec", 0, None, params, tmp_path) as run:
        run.log(0, {"loss": 1.0})
    (line,) = warnings_of(capsys)
    assert "mlflow.tracking" in line


MOVED = """
import sys
from pathlib import Path
from hiar.parameters import load_params
from hiar.io.tracking import tracked
Path(sys.argv[2]).write_text("figures")
with tracked(sys.argv[2], 0, None, load_params(Path(sys.argv[1])), Path()) as run:
    run.artifact(Path(sys.argv[2]))
"""


def test_records_go_with_a_project_that_is_moved_or_copied(project: Path, tmp_path: Path) -> None:
    """To and from a place whose name would end or garble an address; nothing is made where the project was."""

    def record(folder: Path, stage: str) -> None:
        command = [sys.executable, "-c", MOVED, str(PARAMS_FILE), stage]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert run.stderr == ""

    def recorded(folder: Path) -> dict[str, bool]:
        """Whether the files that each run names lie in the folder."""
        with sqlite3.connect(folder / "mlflow.db") as database:
            rows = database.execute("SELECT name, artifact_uri FROM runs WHERE name LIKE 'moved-%'").fetchall()
        inside = (folder / "mlruns").as_uri()
        return {
            name: uri.startswith(f"{inside}/")
            and Path(unquote(urlsplit(uri).path), name.split()[0]).read_text() == "figures"
            for name, uri in rows
        }

    first, odd, copy = tmp_path / "first", tmp_path / "a b?c#d%20e", tmp_path / "copy"
    first.mkdir()
    shutil.copy(project / "mlflow.db", first)
    record(first, "moved-one")
    assert recorded(first) == {"moved-one 0 -": True}
    first.rename(odd)
    record(odd, "moved-two")
    shutil.copytree(odd, copy)
    record(copy, "moved-three")
    assert recorded(odd) == {"moved-one 0 -": True, "moved-two 0 -": True}
    assert recorded(copy) == {"moved-one 0 -": True, "moved-two 0 -": True, "moved-three 0 -": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == [odd.name, copy.name]
