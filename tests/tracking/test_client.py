"""MLflow operations have the same result if repeated, done by two at once, or resumed after a crash."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import tempfile
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from hiar.config import Params
from hiar.io.artifacts import content_hash, write_manifest
from hiar.tracking import client as mlflow
from hiar.tracking import identity, sender
from hiar.tracking.figures import record_figures
from hiar.tracking.identity import describe, digest, identity_of
from hiar.tracking.records import follow_project
from hiar.tracking.spool import TROUBLE, Writer, drain, kept, spool_folder, take_lock, waiting
from tests.tracking.test_tracking import Send, row


@pytest.fixture
def client(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


@pytest.fixture
def experiment(client: MlflowClient, project: Path) -> str:
    return mlflow.open_experiment(client, project, "hiar")


def described(params: Params, workspace: Path, stage: str = "distill", work: str | None = "work") -> dict[str, Any]:
    description = describe(identity_of(stage, 0, "hiar"), params, workspace)
    return description | {"work": work, "began": 2_000_000_000_000}


def test_a_run_left_half_made_or_made_twice_is_completed(
    params: Params, workspace: Path, client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = described(params, workspace)
    log_params = mlflow._log_params

    def die(*_: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(mlflow, "_log_params", die)
        mlflow.open_parent(client, experiment, run)
    parent = mlflow.open_parent(client, experiment, run)
    assert client.get_run(parent).data.params == run["params"]

    first: list[str] = []
    create = client.create_run

    def late(*arguments: Any, **options: Any) -> Any:  # another machine creates the same one just before
        monkeypatch.undo()
        first.append(create(*arguments, **options | {"start_time": 1_000_000_000_000}).info.run_id)
        log_params(client, first[0], run["params"] | run["own"])
        return create(*arguments, **options)

    monkeypatch.setattr(client, "create_run", late)
    found, was_there = mlflow.open_run(client, experiment, parent, run)
    assert (found, was_there) == (first[0], True)
    assert [one.info.run_id for one in client.search_runs([experiment], "tags.kind = 'contender'")] == first


def test_a_parents_status_is_the_worst_of_its_runs_that_count(
    params: Params, workspace: Path, client: MlflowClient, experiment: str
) -> None:
    parent = mlflow.open_parent(client, experiment, described(params, workspace))
    tags = {"mlflow.parentRunId": parent, "kind": "stage"}
    for status, kind, expected in (
        ("FAILED", "superseded", "FINISHED"),
        ("FINISHED", "contender", "FINISHED"),
        ("KILLED", "contender", "KILLED"),
        ("FAILED", "contender", "FAILED"),
        ("KILLED", "stage", "FAILED"),
    ):
        client.set_terminated(client.create_run(experiment, tags=tags | {"kind": kind}).info.run_id, status)
        mlflow.settle(client, experiment, parent)
        assert client.get_run(parent).info.status == expected


def test_a_run_that_never_had_a_heartbeat_is_silent_since_its_start(client: MlflowClient, experiment: str) -> None:
    """As when its sender was killed just after it had made the run."""
    now, runs = round(time.time() * 1000), []
    long_ago = now - 2000 * mlflow.SILENT_SECONDS
    parent_at_work = client.create_run(experiment, start_time=long_ago).info.run_id
    for age in (mlflow.SILENT_SECONDS - 60, mlflow.SILENT_SECONDS + 60):
        parent, alone = (client.create_run(experiment, start_time=now - 1000 * age).info.run_id for _ in range(2))
        tags = {"mlflow.parentRunId": parent}
        runs.append((client.create_run(experiment, start_time=now - 1000 * age, tags=tags).info.run_id, parent, alone))
    tags = {"mlflow.parentRunId": parent_at_work, "heartbeat": datetime.now(UTC).isoformat(timespec="seconds")}
    client.create_run(experiment, start_time=long_ago, tags=tags)
    mlflow.close_silent(client, experiment)
    found = [[client.get_run(run).info.status for run in three] for three in runs]
    assert found == [["RUNNING", "RUNNING", "RUNNING"], ["KILLED", "KILLED", "FINISHED"]]
    assert client.get_run(parent_at_work).info.status == "RUNNING"  # though it has no heartbeat of its own


def test_an_experiment_that_another_machine_makes_meanwhile_is_used(
    client: MlflowClient, experiment: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, asked = client.get_experiment_by_name, []
    monkeypatch.setattr(
        client, "get_experiment_by_name", lambda name: asked.append(name) or (find(name) if len(asked) > 1 else None)
    )
    assert mlflow.open_experiment(client, project, "hiar") == experiment
    assert len(asked) == 2


def test_tags_are_the_trainings_and_cached_runs_link_to_the_newest_maker(
    params: Params, workspace: Path, client: MlflowClient, experiment: str
) -> None:
    run = described(params, workspace)
    parent = mlflow.open_parent(client, experiment, run)
    trained, _ = mlflow.open_run(client, experiment, parent, run | {"tags": run["tags"] | {"commit": "one"}})
    sampled = run | {"work": None, "tags": run["tags"] | {"commit": "two", "more": "x"}}
    assert mlflow.open_run(client, experiment, parent, sampled) == (trained, True)
    known = client.get_run(trained).data.tags
    assert (known["commit"], known["more"]) == ("one", "x")
    makers = [
        client.create_run(experiment, start_time=number, tags={"work": "w", "content": "abc"}).info.run_id
        for number in (1, 2)
    ]
    cached = client.create_run(experiment, tags={"content": "abc"}).info.run_id
    mlflow.link_to_maker(client, experiment, cached, "abc")
    assert client.get_run(cached).data.tags["trained by"] == makers[1]
    mlflow.log_points(client, cached, [("good", 0.4, 2000, 0), ("good", 0.5, 1000, 0), ("good", 0.3, 1500, 1)])
    assert mlflow.history(client, cached, "good") == {0: 0.4, 1: 0.3}  # the latest by time, in any order of arrival


def test_the_shared_view_shows_contenders_and_is_restored(
    params: Params, workspace: Path, client: MlflowClient, experiment: str, project: Path
) -> None:
    (name,) = [name for name in client.get_experiment(experiment).tags if name.startswith("mlflow.sharedViewState")]
    before = client.get_experiment(experiment).tags[name]
    client.set_experiment_tag(experiment, name, "{}")
    assert mlflow.open_experiment(client, project, "hiar") == experiment
    assert client.get_experiment(experiment).tags[name] == before
    parent = mlflow.open_parent(client, experiment, described(params, workspace))
    for stage, variant in (("distill", "hiar"), ("codec", None)):
        description = describe(identity_of(stage, 0, variant), params, workspace) | {
            "work": None,
            "began": 2_000_000_000_000,
        }
        mlflow.open_run(client, experiment, parent, description)
    shown = client.search_runs([experiment], json.loads(before)["searchFilter"])
    assert [run.info.run_name for run in shown] == ["hiar seed 0"]


def test_a_workspace_has_its_name_wherever_it_is_seen_from(
    params: Params, project: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages refer to their workspace from inside it."""
    for folder, name in ((project, "default"), (workspace, "named")):
        monkeypatch.chdir(folder)
        for seen in (folder, Path()):
            assert describe(identity_of("codec", 0, None), params, seen)["experiment"] == name


def test_artifacts_are_stored_in_the_project_or_where_the_server_keeps_them(
    client: MlflowClient, experiment: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.get_experiment(experiment).artifact_location == (project / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    elsewhere = client.get_experiment(mlflow.open_experiment(client, project, "hiar/other"))
    assert str(project / "mlruns") not in elsewhere.artifact_location


def test_a_server_is_tried_at_its_port_and_with_the_users_timeout(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    addresses = []
    with monkeypatch.context() as patch, socket.socket() as connection:
        patch.setattr(socket, "create_connection", lambda address, timeout: addresses.append(address) or connection)
        for uri in ("https://example.org/x", "http://example.org", "http://example.org:5000", "sqlite:///x.db"):
            mlflow.knock(uri)
        patch.setenv("http_proxy", "http://proxy.example:3128")
        for others in ("elsewhere.example", "example.org"):  # through the proxy, which is not asked, and past it
            patch.setenv("no_proxy", others)
            mlflow.knock("http://example.org:5001")
    assert addresses == [("example.org", port) for port in (443, 80, 5000, 5001)]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    mlflow.connect(f"sqlite:///{project / 'mlflow.db'}")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_file_is_logged_although_the_server_takes_longer_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers once it has passed the file on to its own store; no later record would be sent until it is logged."""
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    received = []

    class Server(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(1.5)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_words: object) -> None:
            pass

    path = tmp_path / "index.html"
    path.write_bytes(b"a report")
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        artifacts = HttpArtifactRepository(f"http://127.0.0.1:{server.server_port}/artifacts")
        client = SimpleNamespace(log_artifact=lambda _run, file: artifacts.log_artifact(file))
        for usual in ("1", None):
            if usual is None:
                monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
            else:
                monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", usual)
            mlflow.log_file(client, "run", path)
            assert os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") == usual
        server.shutdown()
    assert received == [b"a report"] * 2


def test_a_server_has_one_spool_whatever_the_password_and_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {}
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        for uri in ("https://me:old@example.org", "https://me:new@example.org", "http://example.org", "sqlite:///x.db"):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            folders[place, uri] = spool_folder(tmp_path)
    assert len({folder for (_, uri), folder in folders.items() if uri.startswith("https")}) == 1
    assert len(set(folders.values())) == 4  # a relative path names another file in another folder


def test_tags_that_runs_are_searched_by(params: Params, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walked = describe(identity_of("sample-walked", 0, "hiar/self-forcing"), params, workspace)
    assert (walked["tags"]["order"], walked["tags"]["context"]) == ("block_first", "finished")
    assert (walked["tags"]["stage"], walked["tags"]["seed"]) == ("walked", "0")
    dimension = describe(identity_of("vbench", 0, "imaging_quality"), params, workspace)
    assert dimension["name"] == "vbench imaging_quality seed 0"
    assert dimension["tags"]["kind"] == "stage"  # not a contender, so comparisons leave it out
    assert "method" not in dimension["tags"]
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    for dirty, tag in ((True, "abc with changes"), (False, "abc")):
        monkeypatch.setattr(identity, "code_version", lambda dirty=dirty: {"commit": "abc", "dirty": dirty})
        assert describe(identity_of("codec", 0, None), params, workspace)["tags"]["commit"] == tag


def test_records_of_others_in_the_database_are_left_alone(client: MlflowClient, experiment: str, project: Path) -> None:
    old = "file:///where/it/was/mlruns"
    theirs = client.create_experiment("hiarchy", artifact_location="file:///of/theirs/mlruns")
    ours = client.create_run(experiment).info.run_id
    own = {
        place: client.create_experiment(f"hiar/{number}", artifact_location=place)
        for number, place in enumerate(("s3://store/mlruns", "file:///chosen/by/the/user"))
    }
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'hiar'", (old,))
        database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (f"{old}-of-others/1/x", ours))
    follow_project(project)
    assert client.get_experiment(theirs).artifact_location == "file:///of/theirs/mlruns"
    assert [client.get_experiment(number).artifact_location for number in own.values()] == [*own]
    assert client.get_experiment(experiment).artifact_location == (project / "mlruns").as_uri()
    assert client.get_run(ours).info.artifact_uri == f"{old}-of-others/1/x"


def test_a_file_kept_twice_is_the_last_one_and_a_zero_error_is_recorded(
    params: Params, project: Path, workspace: Path, send: Send, tmp_path: Path
) -> None:
    writer = Writer(tmp_path / "spool", {})
    for text in ("before", "after"):
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(tmp_path / "v")
        writer.keep(tmp_path / "v")
        writer.keep(tmp_path / "v")  # unchanged
        if text == "before":
            (tmp_path / "elsewhere").hardlink_to(tmp_path / "v")
    assert (tmp_path / "elsewhere").read_text() == "before"
    assert (kept(writer.path) / "v").read_text() == "after"
    writer.close()
    record_figures(params, workspace, [row("distill", "hiar", 0.7, se=0.0)])
    send()
    (run,) = MlflowClient(f"sqlite:///{project / 'mlflow.db'}").search_runs(["1"], "tags.kind = 'contender'")
    assert run.data.metrics["se/good"] == 0.0


def test_a_file_of_another_disk_is_kept_too(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system here")
    with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
        (Path(elsewhere) / "v").write_text("video")
        writer = Writer(tmp_path / "spool", {})
        writer.keep(Path(elsewhere) / "v")
        writer.close()
    assert (kept(writer.path) / "v").read_text() == "video"


def test_a_run_that_has_ended_is_not_reopened_by_a_heartbeat(
    params: Params, project: Path, workspace: Path, client: MlflowClient, send: Send
) -> None:
    """Its stage has recorded its end, but not closed its file yet."""
    writer = Writer(spool_folder(project), describe(identity_of("codec", 0, None), params, workspace) | {"work": None})
    writer.append({"end": "FINISHED"})
    at_work = sender.Sender(spool_folder(project))
    at_work.beaten = float("-inf")
    for action in (lambda: None, writer.close):
        action()
        at_work.round()
        (run,) = client.search_runs(["1"], "tags.kind = 'stage'")
        assert run.info.status == "FINISHED"
        at_work.beaten = float("-inf")
    assert waiting(spool_folder(project)) == []


def test_figures_carry_their_models_hash_and_a_value_per_part_of_the_video(
    params: Params, workspace: Path, client: MlflowClient, send: Send
) -> None:
    contents = {}
    for name in ("distill/hiar", "init"):
        folder = workspace / "artifacts" / "seed-0" / name
        folder.mkdir(parents=True)
        (folder / "weights").write_text(name)
        write_manifest(folder, "checkpoint")
        contents[name] = content_hash(folder)
    rows: list[dict[str, Any]] = [row("distill", "hiar", 0.7), row("walked", "hiar/self-forcing", 0.6)]
    rows[0]["metrics"]["good_segment_12"] = {"mean": 0.25, "se": None, "n": 2}
    record_figures(params, workspace, [*rows, row("init", "hiar", 0.2)])
    send()
    runs = {run.data.tags["stage"]: run for run in client.search_runs(["1"], "tags.kind = 'contender'")}
    assert {stage: run.data.tags["content"] for stage, run in runs.items()} == {
        "distill": contents["distill/hiar"],
        "walked": contents["distill/hiar"],
        "init": contents["init"],
    }
    assert mlflow.history(client, runs["distill"].info.run_id, "segments/good")[12] == 0.25


def test_drain_waits_no_longer_than_given(project: Path) -> None:
    """Not at all if the sender reports trouble, otherwise until it has sent everything."""
    folder = spool_folder(project)
    Writer(folder, {}).close()

    def waits(seconds: float) -> threading.Thread:
        thread = threading.Thread(target=drain, args=(folder, seconds), daemon=True)
        thread.start()
        return thread

    def ended(thread: threading.Thread, within: float = 60.0) -> bool:
        thread.join(within)
        return not thread.is_alive()

    lock = take_lock(folder)  # as held by a sender
    assert lock is not None
    with lock:
        assert ended(waits(0.3))
        (folder / TROUBLE).write_text("away")
        assert ended(waits(3600.0))
        (folder / TROUBLE).unlink()
        assert not ended(last := waits(3600.0), within=0.5)
        waiting(folder)[0].unlink()
        assert ended(last)
