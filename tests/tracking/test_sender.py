"""The sender as the process that stages start; a stage itself only writes lines, whatever happens to MLflow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from commands import environment
from waiting import wait_until

from hiar.config import Params
from hiar.tracking import sender, spool
from hiar.tracking.replay import Replay
from hiar.tracking.spool import LOCK, LOG, drain, spool_folder, take_lock, waiting
from hiar.tracking.stage import tracked
from tests.tracking.conftest import PARAMS_FILE
from tests.tracking.records import Records

STAGE = """
import sys, time
from pathlib import Path
from hiar.parameters import load_params
from hiar.tracking import stage
stage.LOOK_SECONDS = 0.2
steps, seconds = int(sys.argv[4]), float(sys.argv[5])
with stage.tracked("distill", 0, sys.argv[3], load_params(Path(sys.argv[1])), Path(sys.argv[2]), "work") as run:
    print("in the body", flush=True)
    for step in range(steps):
        run.log(step, {"loss": 1 / (step + 1), "critic": float(step)})
        time.sleep(seconds / steps)
    run.tag("content", "abc")
    sys.stdin.read()
print("mlflow" in sys.modules, "torch" in sys.modules, flush=True)
"""


def start_stage(
    workspace: Path, variant: str, steps: int = 1, seconds: float = 0.0, **settings: str
) -> subprocess.Popen[str]:
    """Start a stage and wait until it is in its body; it ends when its standard input is closed."""
    command = [sys.executable, "-c", STAGE, str(PARAMS_FILE), str(workspace), variant, str(steps), str(seconds)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, env=environment() | settings, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=workspace
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in the body\n"
    return process


def end_stage(process: subprocess.Popen[str]) -> str:
    """End a stage; returns its standard error, and checks success and that neither MLflow nor torch was imported."""
    out, err = process.communicate("", timeout=600)
    assert (process.returncode, out) == (0, "False False\n"), err
    return err


def sender_of(folder: Path) -> int:
    """The pid of a folder's sender, once there is one."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has just ended
                continue
            if "hiar.tracking.sender" in words and os.fspath(folder.resolve()) in words:
                return int(entry.parent.name)
        time.sleep(0.02)
    raise AssertionError("nobody sends")


def has_sender(folder: Path) -> bool:
    """Whether a folder has a sender."""
    if (lock := take_lock(folder)) is None:
        return True
    lock.close()
    return False


def kill_sender(folder: Path) -> None:
    """End the sender of a folder, and wait until it is gone."""
    os.kill(sender_of(folder), signal.SIGKILL)
    wait_until(lambda: not has_sender(folder))


def test_two_stages_at_once_whose_sender_is_killed_lose_and_double_nothing(project: Path) -> None:
    stages = {variant: start_stage(project, variant, 400, 2.0) for variant in ("hiar", "self-forcing")}
    folder = spool_folder(project)
    kill_sender(folder)  # while it connects, or after
    kill_sender(folder)  # the one started since by a stage
    for process in stages.values():
        assert end_stage(process) == ""
    drain(folder, 600.0)
    assert waiting(folder) == []
    records = Records(project)
    assert len(records.parents) == 1
    assert records.status() == {"hiar seed 0": "FINISHED", "self-forcing seed 0": "FINISHED"}
    for name in records.status():
        assert records.points(name, "loss") == [(step, 1 / (step + 1)) for step in range(400)]
        assert records.points(name, "critic") == [(step, float(step)) for step in range(400)]
    assert (folder / LOG).read_text() == ""
    kill_sender(folder)


@pytest.fixture
def dead_port() -> Iterator[int]:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("proxied", [False, True])
def test_a_server_that_is_down_costs_one_line(project: Path, dead_port: int, proxied: bool) -> None:
    """A server on this machine is contacted without the proxy."""
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), f"http://127.0.0.1:{dead_port}")
    uri = f"http://somebody:secret@localhost:{dead_port}"
    process = start_stage(project, "hiar", MLFLOW_TRACKING_URI=uri, **(proxies if proxied else {}))
    (folder,) = (project / ".hiar" / "spool").iterdir()
    wait_until((folder / sender.TROUBLE).exists)
    stderr = end_stage(process)
    assert stderr.count("\n") == 1
    assert stderr.startswith("warning: MLflow: not reachable (ConnectionRefusedError")
    assert str(folder) in stderr
    (file,) = waiting(folder)
    assert json.loads(file.read_text().splitlines()[-1])["end"] == "FINISHED"
    assert "secret" not in stderr + "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert "secret" not in str(folder)
    kill_sender(folder)


def test_tracking_off_records_nothing(project: Path) -> None:
    assert end_stage(start_stage(project, "hiar", HIAR_TRACKING="off")) == ""
    assert not (project / ".hiar").exists()


def test_records_wait_for_a_server_that_never_answers(
    params: Params, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        left_after_one_attempt(params, project)


def test_without_mlflow_installed_records_wait(
    params: Params, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    folder = left_after_one_attempt(params, project)
    assert "mlflow.tracking" in (folder / sender.TROUBLE).read_text()


def left_after_one_attempt(params: Params, project: Path) -> Path:
    """The spool of a stage whose records a sender has given up on."""
    folder = spool_folder(project)
    folder.mkdir(parents=True)
    with take_lock(folder):
        with tracked("codec", 0, None, params, project) as run:
            run.log(0, {"loss": 1.0})
        assert sender.Sender(folder).serve() is True
    assert len(waiting(folder)) == 1
    assert (folder / sender.TROUBLE).exists()
    return folder


def test_a_spool_that_cannot_be_written_costs_one_line(
    params: Params, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / ".hiar").write_text("a file of somebody")
    with tracked("codec", 0, None, params, project) as run:
        run.log(0, {"loss": 1.0})
        run.artifact(project / "nothing")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow: this run is not recorded (")


def test_a_sender_ends_with_its_folder(project: Path) -> None:
    folder = spool_folder(project)
    folder.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-m", "hiar.tracking.sender", folder], env=environment())
    wait_until(lambda: holds(process.pid, folder / LOCK))
    niceness = psutil.Process().nice()
    assert psutil.Process(process.pid).nice() > niceness or niceness == 19  # stages come first
    shutil.rmtree(project / ".hiar")
    assert process.wait(600) == 0


def test_a_sender_runs_the_stages_own_code(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the working folder is a clone of another version, whose code comes first on the import path."""
    (project / "hiar" / "__init__.py").write_text("raise SystemExit('another version')")
    monkeypatch.chdir(project)
    monkeypatch.setenv("PYTHONPATH", str(project))
    folder = spool_folder(project)
    folder.mkdir(parents=True)
    spool.start_sender(folder)
    wait_until(lambda: has_sender(folder) or "another version" in (folder / LOG).read_text())
    assert (folder / LOG).read_text() == ""
    kill_sender(folder)


def holds(process: int, path: Path) -> bool:
    """Whether a process has a file open."""
    try:
        return os.fspath(path) in [os.readlink(entry) for entry in Path(f"/proc/{process}/fd").iterdir()]
    except FileNotFoundError:  # it is closing another file
        return False


class Scripted(sender.Sender):
    """A sender with scripted rounds: each raises an error, or returns whether there was anything to do."""

    def __init__(self, folder: Path, ends: Iterator[Exception | bool]) -> None:
        super().__init__(folder)
        self.ends = ends

    def round(self) -> bool:
        if isinstance(end := next(self.ends), Exception):
            raise end
        return end


class Clock(SimpleNamespace):
    """A clock that advances only by sleeping; ``seen`` has the result of ``look`` at each sleep."""

    def __init__(self, look: Callable[[], object]) -> None:
        self.now, self.slept, self.seen, self.look = 0.0, [], [], look

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seen.append(self.look())
        self.now += seconds

    strftime = staticmethod(time.strftime)


def test_an_unreachable_server_is_tried_ever_more_rarely_but_never_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock((tmp_path / sender.TROUBLE).exists)
    monkeypatch.setattr(sender, "time", clock)
    away = [ConnectionError("away")] * 7
    at_work = Scripted(tmp_path, chain(away, [True], away[:1], repeat(False)))
    assert at_work.serve() is False
    first, last = clock.slept[0], clock.slept[6]
    assert first < last == clock.slept[5] == max(clock.slept) <= 60
    assert clock.slept[:7] == sorted(clock.slept[:7])
    assert clock.slept[7] < first == clock.slept[8]  # an answer resets the delays
    assert clock.seen == [True] * 7 + [False, True] + [False] * (len(clock.seen) - 9)


def test_a_sender_waits_for_a_server_as_long_as_a_stage_is_at_work(
    params: Params, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if another stage has ended."""
    folder = spool_folder(project)
    folder.mkdir(parents=True)
    clock = Clock(lambda: None)
    monkeypatch.setattr(sender, "time", clock)
    at_work = Scripted(folder, repeat(ConnectionError("away")))
    with take_lock(folder), ExitStack() as body:
        with tracked("teacher", 0, None, params, project):
            pass
        body.enter_context(tracked("codec", 0, None, params, project))
        at_work.replays |= {path: Replay(path) for path in waiting(folder)}
        assert len(at_work.replays) == 2
        ended = 3 * sender.PATIENCE_SECONDS
        clock.look = lambda: clock.now > ended and body.close()
        assert at_work.serve() is True
    assert clock.now > ended + sender.PATIENCE_SECONDS


def test_a_sender_has_something_to_do_as_long_as_a_stage_is_at_work(params: Params, project: Path) -> None:
    """And then nothing, though it has been connected: otherwise it would never end."""
    folder = spool_folder(project)
    folder.mkdir(parents=True)
    at_work, busy = sender.Sender(folder), []
    with take_lock(folder):
        busy.append(at_work.round())
        with tracked("codec", 0, None, params, project):
            busy += [at_work.round(), at_work.round()]
        busy += [at_work.round(), at_work.round()]
    assert busy == [False, True, True, True, False]
    assert waiting(folder) == []


def test_records_written_as_a_sender_ends_are_sent_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their stage has seen that the lock is taken, and relies on that sender."""
    served = []

    class Ending(sender.Sender):
        def serve(self) -> bool:
            served.append(waiting(self.folder))
            for path in served[-1]:
                path.unlink()
            if len(served) == 1:
                (tmp_path / "late.jsonl").touch()
            return False

    monkeypatch.setattr(sender, "Sender", Ending)
    monkeypatch.setattr(os, "nice", lambda _: 0)  # otherwise this process would be niced
    monkeypatch.setattr(sys, "argv", ["sender", str(tmp_path)])
    sender.main()
    assert served == [[], [tmp_path / "late.jsonl"]]


def test_drain_starts_a_sender_for_abandoned_records_unless_there_is_trouble(
    params: Params, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = spool_folder(project)
    folder.mkdir(parents=True)
    with take_lock(folder), tracked("codec", 0, None, params, project):
        pass
    (folder / sender.TROUBLE).write_text("away")
    with take_lock(folder), monkeypatch.context() as patch:
        patch.setattr(spool.time, "sleep", lambda _: pytest.fail("waits for a server that is away"))
        drain(folder, 600.0)
    assert len(waiting(folder)) == 1
    (folder / sender.TROUBLE).unlink()
    drain(folder, 600.0)
    assert waiting(folder) == []
    assert Records(project).status() == {"codec seed 0": "FINISHED"}
    kill_sender(folder)


class Server:
    """An MLflow server, which can be killed and restarted on the same records."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        settings = environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, env=settings, cwd=self.folder, start_new_session=True, stdout=quiet, stderr=quiet
        )
        deadline = time.monotonic() + 600
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path)
    yield one
    one.kill()


@pytest.mark.long
def test_a_server_that_was_killed_meanwhile_ends_with_every_point(
    project: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 3000
    server.start()
    process = start_stage(project, "hiar", steps, 60.0, MLFLOW_TRACKING_URI=server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    wait_until(lambda: "loss" in metrics_of(server.uri))
    server.kill()
    folder = spool_folder(project)
    wait_until((folder / sender.TROUBLE).exists)
    assert process.poll() is None
    server.start()
    assert end_stage(process) == ""
    wait_until(lambda: waiting(folder) == [])
    records = Records(server.uri)
    assert records.points("hiar seed 0", "loss") == [(step, 1 / (step + 1)) for step in range(steps)]
    assert records.status() == {"hiar seed 0": "FINISHED"}
    assert len(records.parents) == 1
    kill_sender(folder)


def metrics_of(uri: str) -> set[str]:
    """The metrics of all stages that a server has so far."""
    try:
        return {name for run in Records(uri).stages for name in run.data.metrics}
    except AssertionError:  # no experiment yet
        return set()
