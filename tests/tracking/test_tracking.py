"""MLflow records every stage as users compare them, each point once, whatever is killed in between."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from commands import environment

from hiar.config import Params
from hiar.io.artifacts import code_version
from hiar.io.files import remove
from hiar.tracking import sender, stage
from hiar.tracking.client import SILENT_SECONDS
from hiar.tracking.figures import record_figures
from hiar.tracking.replay import Replay
from hiar.tracking.spool import LOCK, TROUBLE, Writer, is_written, kept, spool_folder, take_lock, waiting
from hiar.tracking.stage import tracked
from tests.tracking.conftest import PARAMS_FILE
from tests.tracking.records import Records

Send = Callable[[], None]


def test_a_stage_records_parameters_metrics_files_and_tags(
    params: Params, project: Path, workspace: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    (workspace / "v.mp4").write_bytes(b"video")
    at_work, began = sender.Sender(spool_folder(project)), time.time() * 1000 - 1
    content = sha256(b"weights").hexdigest()
    with tracked("distill", 3, "hiar", params, workspace, {"code": 1}) as run:
        for step in range(1500):
            run.log(step, {"loss": 1 / (step + 1), "critic": float(step)})
        run.tag("content", content)
        run.artifact(workspace / "v.mp4")
        (workspace / "v.mp4").rename(workspace / "renamed.mp4")  # as an artifact is renamed once complete
        at_work.round()
        deadline = time.monotonic() + 600  # for another thread to measure the machine
        while not any(name.startswith("system/") for name in Records(project).run("hiar seed 3").data.metrics):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        records = Records(project)
        assert (records.parents[0].info.status, records.status()) == ("RUNNING", {"hiar seed 3": "RUNNING"})
    ended = time.time() * 1000 + 1
    at_work.round()
    records = Records(project)
    (parent,), (stage,) = records.parents, records.stages
    assert (parent.info.status, stage.info.status) == ("FINISHED", "FINISHED")
    assert began <= stage.info.start_time <= stage.info.end_time <= ended  # the stage's times, not the sender's
    expected = {
        "kind": "contender",
        "experiment": "named",
        "method": "hiar",
        "stage": "distill",
        "seed": "3",
        "order": "step_first",
        "context": "output",
        "content": content,
        "mlflow.parentRunId": parent.info.run_id,
    }
    assert stage.data.tags.items() >= expected.items()
    assert stage.data.tags["commit"].startswith(code_version()["commit"])
    assert parent.info.run_name.startswith("named ")
    for entry in (parent, stage):
        assert entry.data.params["teacher.training.optimizer.adamw.betas"] == "[0.9, 0.99]"
        assert entry.data.params["variants.hiar.order"] == "step_first"
    assert stage.data.params["method"] == "hiar"
    assert records.points("hiar seed 3", "loss") == [(step, 1 / (step + 1)) for step in range(1500)]
    (artifact,) = records.client.list_artifacts(stage.info.run_id)
    assert Path(records.client.download_artifacts(stage.info.run_id, artifact.path)).read_bytes() == b"video"
    assert records.experiment.artifact_location == (project / "mlruns").as_uri()
    assert waiting(spool_folder(project)) == []
    assert not any(spool_folder(project).glob("*.files"))


def test_a_machines_load_is_recorded_again_after_the_server_was_away(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    """MLflow's thread that records it ends when it meets no server."""
    at_work = sender.Sender(spool_folder(project))
    with tracked("distill", 3, "hiar", params, workspace, {"code": 1}):
        at_work.round()
        (replay,) = at_work.replays.values()
        client, ended = Records(project).client, replay._monitor
        replay.beat(client)
        assert replay._monitor is ended
        ended._shutdown_event.set()
        ended._process.join()
        replay.beat(client)
        assert replay._monitor._process.is_alive()
    at_work.round()
    assert replay._monitor is None
    assert not any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate())


def row(stage: str, variant: str, good: float, se: float | None = 0.1) -> dict[str, object]:
    figures = {"good": good, "good_segment_1": good + 0.1, "good_segment_2": good - 0.1}
    metrics = {name: {"mean": value, "se": se, "n": 2} for name, value in figures.items()}
    return {"stage": stage, "variant": variant, "seed": 0, "metrics": metrics}


ROWS = [row("teacher", "teacher", 0.9), row("init", "hiar", 0.2), row("distill", "hiar", 0.7)]
ROWS += [row("distill", "self-forcing", 0.5)]


def test_a_contenders_training_samples_and_scores_are_one_run(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    for variant in ("hiar", "self-forcing"):
        with tracked("distill", 0, variant, params, workspace, variant) as run:
            run.log(0, {"dmd": 1.0})
        (workspace / "0000.mp4").write_text(variant)
        with tracked("sample", 0, variant, params, workspace) as run:
            run.artifact(workspace / "0000.mp4")
        (workspace / "0000.mp4").unlink()
    with tracked("score", None, None, params, workspace):
        pass
    record_figures(params, workspace, ROWS)
    send()
    records = Records(project)
    assert set(records.status()) == {"teacher seed 0", "hiar seed 0 init", "hiar seed 0", "self-forcing seed 0"}
    query = "tags.kind = 'contender' and tags.stage = 'distill' and tags.seed = '0'"
    both = records.client.search_runs([records.experiment.experiment_id], query, order_by=["metrics.good DESC"])
    assert [run.data.tags["method"] for run in both] == ["hiar", "self-forcing"]
    assert [run.data.tags["context"] for run in both] == ["output", "finished"]
    names = {"good", "se/good", "segments/good"}
    assert [run.data.metrics.keys() & names for run in both] == [names, names]
    assert records.points("self-forcing seed 0", "good") == [(0, 0.5)]
    assert records.points("self-forcing seed 0", "segments/good") == [(1, 0.6), (2, 0.4)]
    for run in both:
        assert [file.path for file in records.client.list_artifacts(run.info.run_id)] == ["0000.mp4"]
        assert run.data.metrics["dmd"] == 1.0
    assert [parent.info.status for parent in records.parents] == ["FINISHED"]


def test_scores_computed_again_count_once_unless_they_differ(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    for good in (0.7, 0.7, 0.8):
        record_figures(params, workspace, [row("distill", "hiar", good, se=None)])
        send()
    records = Records(project)
    assert records.points("hiar seed 0", "good") == [(0, 0.7), (0, 0.8)]
    assert records.run("hiar seed 0").data.metrics["good"] == 0.8
    assert "se/good" not in records.run("hiar seed 0").data.metrics


def test_a_cached_result_names_the_run_that_made_it(params: Params, project: Path, workspace: Path, send: Send) -> None:
    with tracked("init", 0, None, params, project, "work") as run:
        run.tag("content", "abc")
    with tracked("sample-init", 0, "hiar", params, workspace) as run:
        run.tag("content", "abc")
    send()
    records = Records(project)
    maker, sampled = records.run("init seed 0"), records.run("hiar seed 0 init")
    assert (maker.data.tags["experiment"], sampled.data.tags["experiment"]) == ("default", "named")
    assert sampled.data.tags["trained by"] == maker.info.run_id
    assert f"runs/{maker.info.run_id})" in sampled.data.tags["mlflow.note.content"]
    assert "trained by" not in maker.data.tags


def test_stages_of_equal_parameters_share_a_parent_with_the_worst_status(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    with pytest.raises(ZeroDivisionError), tracked("teacher", 0, None, params, workspace, "work"):
        raise ZeroDivisionError
    with tracked("codec", 0, None, params, workspace, "work"):
        pass
    send()
    assert [run.info.status for run in Records(project).parents] == ["FAILED"]
    with pytest.raises(KeyboardInterrupt), tracked("pairs", 0, None, params, workspace, "work"):
        raise KeyboardInterrupt
    with tracked("teacher", 0, None, params, workspace, "work"):
        pass
    with tracked("teacher", 0, None, params.model_copy(update={"seeds": [7]}), workspace, "work"):
        pass
    send()
    records = Records(project)
    assert sorted(run.info.status for run in records.parents) == ["FINISHED", "KILLED"]
    assert len(records.stages) == 4


def test_a_project_has_one_mlflow_experiment_unless_another_is_named(
    params: Params, project: Path, workspace: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracked("codec", 0, None, params, project, "work"):
        pass
    with tracked("codec", 0, None, params, workspace, "work"):
        pass
    odd = workspace.rename(workspace.with_name("it's"))
    monkeypatch.setenv("HIAR_EXPERIMENT", "given")
    with tracked("pairs", 0, None, params, odd, "work"):
        pass
    send()
    assert sorted(run.data.tags["experiment"] for run in Records(project).stages) == ["default", "named"]
    assert Records(project, "hiar/given").status() == {"pairs seed 0": "FINISHED"}


KILLED = """
import os, signal, sys
from pathlib import Path
from hiar.parameters import load_params
from hiar.tracking.stage import tracked
with tracked("distill", 0, "hiar", load_params(Path(sys.argv[1])), Path(sys.argv[2]), "work") as run:
    for step in range(6):
        run.log(step, {"loss": float(step)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_and_resumed_stage_has_one_run_and_each_step_once(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    command = [sys.executable, "-c", KILLED, str(PARAMS_FILE), str(workspace)]
    subprocess.run(command, env=environment(), timeout=600)
    (file,) = waiting(spool_folder(project))
    with file.open("ab") as torn:  # as a crashing machine may leave it
        torn.write(b'{"metrics": {"loss": 9.0}, "st')
    send()
    records = Records(project)
    assert (records.status(), records.parents[0].info.status) == ({"hiar seed 0": "KILLED"}, "KILLED")
    with tracked("distill", 0, "hiar", params, workspace, "work") as run:
        for step in range(3, 10):  # from its last checkpoint
            run.log(step, {"loss": float(step), "late": 0.0})
    send()
    records = Records(project)
    assert (records.status(), records.parents[0].info.status) == ({"hiar seed 0": "FINISHED"}, "FINISHED")
    assert records.points("hiar seed 0", "loss") == [(step, float(step)) for step in range(10)]
    assert [step for step, _ in records.points("hiar seed 0", "late")] == list(range(3, 10))


def test_other_code_with_the_same_parameters_has_its_own_run(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    for code in ("before", "after"):
        with tracked("distill", 0, "hiar", params, workspace, code) as run:
            run.log(0, {"loss": float(len(code))})
        with tracked("sample", 0, "hiar", params, workspace) as run:
            run.tag("content of samples", code)
        send()
    tags = [(run.data.tags["kind"], run.data.tags["content of samples"]) for run in Records(project).stages]
    assert sorted(tags) == [("contender", "after"), ("superseded", "before")]
    assert sorted(run.data.metrics["loss"] for run in Records(project).stages) == [5.0, 6.0]


def test_a_sender_that_died_before_it_cleaned_up_duplicates_nothing(
    params: Params, project: Path, workspace: Path, send: Send, tmp_path: Path
) -> None:
    (workspace / "v.mp4").write_bytes(b"video")
    with tracked("distill", 0, "hiar", params, workspace, "work") as run:
        for step in range(5):
            run.log(step, {"loss": float(step)})
        run.figures({"good": 0.5})
        run.artifact(workspace / "v.mp4")
    record_figures(params, workspace, ROWS)
    shutil.copytree(spool_folder(project), tmp_path / "copy")
    send()
    shutil.copytree(tmp_path / "copy", spool_folder(project), dirs_exist_ok=True)
    for files in spool_folder(project).glob("*.files"):
        shutil.rmtree(files)  # which the sender had removed first
    assert len(waiting(spool_folder(project))) == 1 + len(ROWS)
    send()
    records = Records(project)
    assert (len(records.parents), len(records.stages)) == (1, len(ROWS))
    assert records.points("hiar seed 0", "loss") == [(step, float(step)) for step in range(5)]
    assert records.points("hiar seed 0 init", "good") == [(0, 0.2)]
    assert waiting(spool_folder(project)) == []


def test_what_a_sender_leaves_if_it_dies_cleaning_up_is_removed_by_the_next(
    params: Params, project: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a stage's files would stay for ever once its lines are gone."""
    (workspace / "v.mp4").write_bytes(b"video")
    folder = spool_folder(project)
    folder.mkdir(parents=True)
    with take_lock(folder), tracked("distill", 0, "hiar", params, workspace, "work") as run:
        run.artifact(workspace / "v.mp4")

    def killed(path: Path) -> None:
        remove(path)
        raise KeyboardInterrupt

    (left,) = waiting(folder)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hiar.tracking.replay.remove", killed)
        Replay(left).discard()
    for path in waiting(folder):
        Replay(path).discard()
    assert [path.name for path in folder.iterdir()] == [LOCK]


def test_what_a_crash_of_the_machine_has_garbled_does_not_hold_up_the_rest(
    params: Params, project: Path, workspace: Path, send: Send, capsys: pytest.CaptureFixture[str]
) -> None:
    """As zeros, which some file systems leave; or nothing at all."""
    folder = spool_folder(project)
    for number, data in enumerate((b"", bytes(100), b'{"run": {"collection')):
        (folder / f"0-{number}.jsonl").write_bytes(data)
    with tracked("codec", 0, None, params, workspace, "work") as run:
        run.log(0, {"loss": 1.0})
        with waiting(folder)[-1].open("ab") as file:
            file.write(bytes(100) + b"\n")
        run.log(1, {"loss": 2.0})
    send()
    assert Records(project).points("codec seed 0", "loss") == [(0, 1.0), (1, 2.0)]
    assert waiting(folder) == []
    assert capsys.readouterr().out.count("left out: ") == 4


def test_a_run_without_heartbeats_is_closed_and_reopened_by_the_next_one(
    params: Params, project: Path, workspace: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracked("distill", 0, "hiar", params, workspace, "work"):
        at_work = sender.Sender(spool_folder(project))
        at_work.round()
        records = Records(project)
        run_id = records.stages[0].info.run_id
        for age, status in ((SILENT_SECONDS - 60, "RUNNING"), (SILENT_SECONDS + 60, "KILLED")):
            heartbeat = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - age))
            records.client.set_tag(run_id, "heartbeat", heartbeat)
            with tracked("codec", 0, None, params, project, "work"):
                pass
            send_all_but_the_first(project, workspace, send)
            assert Records(project).run("hiar seed 0").info.status == status
        with monkeypatch.context() as patch:
            patch.setattr(sender, "BEAT_SECONDS", 3600.0)
            at_work.round()  # its last heartbeat is recent
        assert Records(project).run("hiar seed 0").info.status == "KILLED"
        at_work.beaten = 0.0
        at_work.round()
        assert Records(project).run("hiar seed 0").info.status == "RUNNING"
        assert {run.info.status for run in Records(project).parents} == {"RUNNING", "FINISHED"}


def send_all_but_the_first(project: Path, workspace: Path, send: Send) -> None:
    """A round of a sender that does not see the first file, as if on another machine."""
    first = waiting(spool_folder(project))[0]
    aside = first.with_suffix(".aside")
    first.rename(aside)
    send()
    aside.rename(first)


def test_records_that_mlflow_refuses_do_not_hold_up_the_rest(
    params: Params, project: Path, workspace: Path, send: Send, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracked("distill", 0, "hiar", params, workspace, "work") as run:
        at_work = sender.Sender(spool_folder(project))
        at_work.round()
        records = Records(project)
        for one in (*records.stages, *records.parents):  # as by a user on MLflow's pages
            records.client.delete_run(one.info.run_id)
        run.log(0, {"loss": 1.0})
        run.tag("content", "abc")
    with tracked("codec", 0, None, params, workspace, "work"):
        pass
    at_work.round()
    assert Records(project).status() == {"codec seed 0": "FINISHED"}
    assert waiting(spool_folder(project)) == []
    assert "left out" in capsys.readouterr().out


def test_a_database_that_breaks_meanwhile_is_reported_and_loses_nothing(
    params: Params,
    project: Path,
    workspace: Path,
    send: Send,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.0)
    folder = spool_folder(project)
    at_work = sender.Sender(folder)
    with tracked("codec", 0, None, params, workspace, "work") as run:
        at_work.round()
        with sqlite3.connect(project / "mlflow.db") as database:
            database.execute("ALTER TABLE latest_metrics RENAME TO hidden")
        run.log(0, {"loss": 1.0})
    assert at_work.serve() is True
    assert "no such table" in (folder / TROUBLE).read_text()
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("ALTER TABLE hidden RENAME TO latest_metrics")
    monkeypatch.setattr(sender, "IDLE_SECONDS", 0.0)
    assert sender.Sender(folder).serve() is False
    assert not (folder / TROUBLE).exists()
    sender.Sender(folder)._tell(OSError("http://somebody:hidden@store refuses"))  # as libraries put addresses in errors
    assert "hidden" not in (folder / TROUBLE).read_text() + capsys.readouterr().out
    assert Records(project).points("codec seed 0", "loss") == [(0, 1.0)]


def test_a_sender_sends_the_rest_once_the_database_is_repaired(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    at_work = sender.Sender(spool_folder(project))
    with tracked("codec", 0, None, params, workspace, "work") as run:
        run.log(0, {"loss": 1.0})
        at_work.round()
        for step in (1, 2):
            run.log(step, {"loss": float(step)})
        for old, new, done in (("latest_metrics", "hidden", False), ("hidden", "latest_metrics", True)):
            with sqlite3.connect(project / "mlflow.db") as database:
                database.execute(f"ALTER TABLE {old} RENAME TO {new}")
            with nullcontext() if done else pytest.raises(Exception, match="no such table"):
                at_work.round()
    at_work.round()
    assert Records(project).points("codec seed 0", "loss") == [(0, 1.0), (1, 1.0), (2, 2.0)]
    assert waiting(spool_folder(project)) == []


def test_waiting_records_are_sent_in_the_order_written(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    """Of a repeated step the first value counts, of results the last, even if both are waiting."""
    for value in (1.0, 2.0, 3.0):
        with tracked("codec", 0, None, params, workspace, "work") as run:
            run.log(0, {"loss": np.float32(value)})  # whatever type computed it
            run.figures({"good": np.float32(value)})
    send()
    records = Records(project)
    assert records.points("codec seed 0", "loss") == [(0, 1.0)]
    assert records.run("codec seed 0").data.metrics["good"] == 3.0


def test_a_sender_is_looked_for_at_once_and_not_at_each_step(
    params: Params, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training step may take only milliseconds."""
    looks: list[Path] = []
    monkeypatch.setattr(stage, "LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(stage, "_see_to_sender", looks.append)
    with tracked("codec", 0, None, params, project) as run:
        assert looks == [spool_folder(project)]  # before the stage has anything to record
        for step in range(9):
            run.log(step, {"loss": 1.0})
        assert looks == [spool_folder(project)]


def test_nobody_else_may_write_into_a_stage_s_file(tmp_path: Path) -> None:
    """Even if the umask would allow it."""
    old = os.umask(0)
    try:
        writer = Writer(tmp_path, {})
    finally:
        os.umask(old)
    writer.close()
    assert writer.path.stat().st_mode & 0o022 == 0


def test_events_have_their_time_in_milliseconds(tmp_path: Path) -> None:
    """Otherwise the order of two stages within a second would be lost."""
    began = time.time() * 1000
    writer = Writer(tmp_path, {})
    ended = time.time() * 1000
    writer.close()
    assert began - 1 <= json.loads(writer.path.read_text())["time"] <= ended + 1


def test_a_file_is_locked_and_says_whose_it_is_before_it_gets_its_name(
    params: Params, project: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender takes an unlocked file for a dead stage's, and would end its run; it discards one without a run."""
    rename, held = Path.rename, []

    def watched(path: Path, target: Path) -> Path:
        named = rename(path, target)
        held.append((is_written(named), json.loads(named.read_bytes())["run"]))
        return named

    monkeypatch.setattr(Path, "rename", watched)
    writer = Writer(spool_folder(project), {"name": "codec seed 0"})
    assert held == [(True, {"name": "codec seed 0"})]
    writer.close()
    assert not is_written(writer.path)


MOVED = """
import sys
from pathlib import Path
from hiar.tracking.sender import Sender
Sender(Path(sys.argv[1]).resolve()).round()
"""


def test_records_go_with_a_project_that_is_moved_or_copied(params: Params, project: Path, tmp_path: Path) -> None:
    """Also to and from a path that would cut or garble a URI; nothing is created at the old place."""

    def record(folder: Path, stage: str) -> None:
        (folder / stage).write_text("figures")
        spool_folder(folder).mkdir(parents=True, exist_ok=True)
        with sender.take_lock(spool_folder(folder)), tracked(stage, 0, None, params, folder) as run:
            run.artifact(folder / stage)
        if folder == copy:  # this path is valid in this process
            sender.Sender(spool_folder(folder)).round()
            return
        command = [sys.executable, "-c", MOVED, str(spool_folder(Path()))]
        sent = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
        assert (sent.returncode, sent.stderr) == (0, "")

    def recorded(folder: Path) -> dict[str, bool]:
        """For each run, whether its files are in the folder."""
        with sqlite3.connect(folder / "mlflow.db") as database:
            rows = database.execute("SELECT name, artifact_uri FROM runs WHERE name LIKE 'moved-%'").fetchall()
        inside = (folder / "mlruns").as_uri()
        return {
            name.split()[0]: uri.startswith(f"{inside}/")
            and Path(unquote(urlsplit(uri).path), name.split()[0]).read_text() == "figures"
            for name, uri in rows
        }

    odd, copy = tmp_path / "a b?c#d%20e", tmp_path / "copy"
    project.rename(odd)
    record(odd, "moved-one")
    assert recorded(odd) == {"moved-one": True}
    shutil.copytree(odd, copy)
    record(copy, "moved-two")
    assert recorded(odd) == {"moved-one": True}
    assert recorded(copy) == {"moved-one": True, "moved-two": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == [odd.name, copy.name]


def test_an_artifact_is_kept_as_it_was_when_recorded(
    params: Params, project: Path, workspace: Path, send: Send
) -> None:
    (workspace / "v").write_text("before")
    with tracked("codec", 0, None, params, workspace, "work") as run:
        run.artifact(workspace / "v")
        (workspace / "new").write_text("after")
        (workspace / "new").replace(workspace / "v")
    (file,) = waiting(spool_folder(project))
    assert (kept(file) / "v").read_text() == "before"


def test_lines_that_a_stage_writes_as_it_ends_are_sent(
    params: Params, project: Path, workspace: Path, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage ends just after everything it had written was read."""
    at_work = sender.Sender(spool_folder(project))
    with ExitStack() as stage:
        run = stage.enter_context(tracked("codec", 0, None, params, workspace))
        at_work.round()
        (replay,) = at_work.replays.values()
        read = replay._read

        def read_and_end() -> list[bytes]:
            if lines := read():
                return lines
            monkeypatch.undo()
            run.log(0, {"loss": 1.0})
            stage.close()
            return []

        monkeypatch.setattr(replay, "_read", read_and_end)
        at_work.round()
    at_work.round()
    assert Records(project).points("codec seed 0", "loss") == [(0, 1.0)]
    assert Records(project).status() == {"codec seed 0": "FINISHED"}
    assert waiting(spool_folder(project)) == []


def test_a_disk_that_is_full_for_a_moment_costs_one_line_and_leaves_nothing_that_cannot_be_read(
    params: Params, project: Path, workspace: Path, send: Send, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracked("codec", 0, None, params, workspace) as run:
        (file,) = waiting(spool_folder(project))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, hard))
        try:
            run.log(0, {"loss": 1.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        run.log(1, {"loss": 1.0})
    send()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow: the rest of this run is not recorded (")
    assert Records(project).points("codec seed 0", "loss") == []
