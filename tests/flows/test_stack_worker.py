"""A worker of the stack, with a Prefect of a few lines in Prefect's place: when it begins, and what it leaves."""

import functools
import http.server
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import waiting
from commands import environment
from waiting import wait_until

from flows.stack.settings import DATABASES

PREFECT = """\
import os, pathlib, subprocess, sys, time
run = "import pathlib, signal, sys, time\\n" \\
    "def end(*_):\\n" \\
    "    pathlib.Path('asked').touch(); time.sleep(0.5); pathlib.Path('ended').touch(); sys.exit()\\n" \\
    "signal.signal(signal.SIGTERM, end); pathlib.Path('runs').touch(); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", run, "prefect.engine"])
left = subprocess.Popen(["sleep", "600"], start_new_session=True)
orphan = "import subprocess; print(subprocess.Popen(['sleep', '0.1'], stdout=subprocess.DEVNULL).pid)"
pathlib.Path("orphan").write_text(subprocess.run([sys.executable, "-c", orphan], stdout=-1, text=True).stdout)
pathlib.Path("told").write_text("\\n".join([str(left.pid), *sys.argv[1:], *os.environ]))
while not pathlib.Path("asked").exists():
    time.sleep(0.01)
pathlib.Path("more").touch()
time.sleep(600)
"""


# It starts a run as well, and something else, and then ends by itself, or when it is told to.
ENDS = """\
import pathlib, signal, subprocess, sys, time
pathlib.Path("early").write_text(str(not pathlib.Path("answered").exists()))
run = "import pathlib, signal, sys, time\\n" \\
    "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('ended').touch(), sys.exit()))\\n" \\
    "pathlib.Path('runs').touch(); time.sleep(600)"
run = subprocess.Popen([sys.executable, "-c", run, "prefect.engine"])
left = subprocess.Popen(["sleep", "600"])
while not pathlib.Path("runs").exists():
    time.sleep(0.01)
pathlib.Path("begun").write_text(f"{run.pid} {left.pid}")
while not pathlib.Path("end").exists():
    time.sleep(0.01)
sys.exit(7)
"""


class Health(http.server.SimpleHTTPRequestHandler):
    """Of a server that is starting when it is asked first."""

    asked = 0

    def do_GET(self):
        Health.asked += 1
        if Health.asked < 2:
            self.send_error(503)
            return
        Path(self.directory, "answered").touch()
        super().do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def at_work(folder, program, command=("-m", "flows.stack.worker")):
    """The process of a worker whose Prefect is a program; its server's folder, and its own, is ``folder``."""
    (folder / "prefect").mkdir()
    (folder / "prefect" / "__init__.py").touch()
    (folder / "prefect" / "__main__.py").write_text(program)
    (folder / "api" / "admin").mkdir(parents=True)
    (folder / "api" / "admin" / "version").write_text(f'"{version("prefect")}"')
    Health.asked = 0
    handler = functools.partial(Health, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = dict.fromkeys(DATABASES, "a password in it")
        settings["PREFECT_API_URL"] = f"http://127.0.0.1:{server.server_address[1]}/api"
        settings["PYTHONPATH"] = f"{folder}{os.pathsep}{environment()['PYTHONPATH']}"
        asked = [sys.executable, *command, "--pool", "stages", "--limit", "2", "--with-healthcheck"]
        worker = subprocess.Popen(asked, cwd=folder, env=environment() | settings)
        try:
            yield worker
        finally:
            worker.kill()
            server.shutdown()


def is_at_work(number):
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE


def test_a_worker_that_is_asked_to_end_lets_its_runs_end_and_leaves_nothing(tmp_path, own):
    """Of a Prefect that starts one run, and would start more; neither gets to know where the servers' databases are.

    What a killed run has left, and ends later, is gone then.
    """
    with at_work(tmp_path, PREFECT) as worker:
        wait_until(lambda: (tmp_path / "runs").exists() and (tmp_path / "told").exists())
        below = psutil.Process(worker.pid).children(recursive=True)
        orphan = int((tmp_path / "orphan").read_text())
        wait_until(lambda: not psutil.pid_exists(orphan))  # ended, and nobody's zombie
        worker.terminate()
        assert worker.wait(120) == 0
    left, *told = (tmp_path / "told").read_text().split("\n")
    assert told[:8] == ["worker", "start", "--type", "process", "--pool", "stages", "--limit", "2"]
    assert told[8] == "--with-healthcheck"  # what is not its own is Prefect's
    assert not set(DATABASES) & set(told)
    assert "PREFECT_API_URL" in told
    assert (tmp_path / "ended").exists()
    assert not (tmp_path / "more").exists()  # nothing was begun meanwhile
    assert int(left) in [one.pid for one in below]
    assert not [one for one in below if is_at_work(one.pid)]


def test_a_worker_whose_prefect_ends_ends_like_it_and_leaves_nothing(tmp_path, own):
    with at_work(tmp_path, ENDS) as worker:
        wait_until((tmp_path / "begun").exists)
        (tmp_path / "end").touch()
        assert worker.wait(120) == 7
    assert (tmp_path / "early").read_text() == "False"  # Prefect's begins when there is a server to speak to
    assert (tmp_path / "ended").exists()  # the run was asked to
    assert not any(is_at_work(int(number)) for number in (tmp_path / "begun").read_text().split())


def test_a_run_that_does_not_end_is_killed_when_its_time_is_over(tmp_path, own):
    soon = "import sys; from flows.stack import worker; worker.GRACE = 0.5; sys.exit(worker.main())"
    stubborn = ENDS.replace("lambda *_: (pathlib.Path('ended').touch(), sys.exit())", "signal.SIG_IGN")
    with at_work(tmp_path, stubborn, ("-c", soon)) as worker:
        wait_until((tmp_path / "begun").exists)
        worker.terminate()
        assert worker.wait(60) == 0
    assert not any(is_at_work(int(number)) for number in (tmp_path / "begun").read_text().split())


def test_prefect_s_worker_does_not_outlive_a_worker_that_is_killed(tmp_path, own, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 60.0)  # what is not ended now never is
    with at_work(tmp_path, ENDS) as worker:
        wait_until((tmp_path / "begun").exists)
        (prefect,) = psutil.Process(worker.pid).children()
        below = prefect.children()
        try:
            worker.send_signal(signal.SIGKILL)
            wait_until(lambda: not is_at_work(prefect.pid))
        finally:
            for one in (*below, prefect):
                with suppress(psutil.NoSuchProcess):
                    one.kill()


@pytest.mark.parametrize(("seconds", "said"), [(120, "behind"), (-120, "ahead of")])
def test_a_clock_that_is_off_either_way_is_refused(seconds: int, said: str) -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime
    from types import SimpleNamespace

    from flows.stack.worker import _check_clock
    from hiar.errors import UserError

    its = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    with pytest.raises(UserError, match=said):
        _check_clock(SimpleNamespace(headers={"date": its}))
