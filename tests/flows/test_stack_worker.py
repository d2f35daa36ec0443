"""A worker of the stack, with a few lines in place of Prefect: when it begins, and which processes it leaves."""

import base64
import functools
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import httpx
import psutil
import pytest
import waiting
from commands import environment
from waiting import wait_until

from flows.server import NO_CREDENTIALS
from flows.stack.reach import _check, wait_for_server
from flows.stack.settings import DATABASES
from flows.stack.worker import _check_clock
from hiar.errors import UserError

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


# Starts a run and another process, and ends once there is a file `end`.
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
    """A server that is still starting at the first request."""

    requests = 0

    def do_GET(self):
        Health.requests += 1
        if Health.requests < 2:
            self.send_error(503)
            return
        Path(self.directory, "answered").touch()
        super().do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def running_worker(folder, program, command=("-m", "flows.stack.worker")):
    """The process of a worker whose Prefect is ``program``; it and its server work in ``folder``."""
    (folder / "prefect").mkdir()
    (folder / "prefect" / "__init__.py").touch()
    (folder / "prefect" / "__main__.py").write_text(program)
    (folder / "api" / "admin").mkdir(parents=True)
    (folder / "api" / "admin" / "version").write_text(f'"{version("prefect")}"')
    Health.requests = 0
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


def is_running(number):
    return psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE


def test_a_terminated_worker_lets_its_runs_end_and_leaves_no_process(tmp_path, clean_env):
    """Prefect starts one run and would start more; neither gets the addresses of the servers' databases.

    An orphan that ends later is reaped.
    """
    with running_worker(tmp_path, PREFECT) as worker:
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
    assert not [one for one in below if is_running(one.pid)]


def test_a_worker_exits_with_the_code_of_its_prefect_and_leaves_no_process(tmp_path, clean_env):
    with running_worker(tmp_path, ENDS) as worker:
        wait_until((tmp_path / "begun").exists)
        (tmp_path / "end").touch()
        assert worker.wait(120) == 7
    assert (tmp_path / "early").read_text() == "False"  # Prefect starts after its server has answered
    assert (tmp_path / "ended").exists()  # the run got SIGTERM
    assert not any(is_running(int(number)) for number in (tmp_path / "begun").read_text().split())


def test_a_run_that_does_not_end_is_killed_after_the_grace_period(tmp_path, clean_env):
    soon = "import sys; from flows.stack import worker; worker.GRACE = 0.5; sys.exit(worker.main())"
    stubborn = ENDS.replace("lambda *_: (pathlib.Path('ended').touch(), sys.exit())", "signal.SIG_IGN")
    with running_worker(tmp_path, stubborn, ("-c", soon)) as worker:
        wait_until((tmp_path / "begun").exists)
        worker.terminate()
        assert worker.wait(60) == 0
    assert not any(is_running(int(number)) for number in (tmp_path / "begun").read_text().split())


def test_prefect_s_worker_does_not_outlive_a_worker_that_is_killed(tmp_path, clean_env, monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 60.0)  # a process that survives this survives for good
    with running_worker(tmp_path, ENDS) as worker:
        wait_until((tmp_path / "begun").exists)
        (prefect,) = psutil.Process(worker.pid).children()
        below = prefect.children()
        try:
            worker.send_signal(signal.SIGKILL)
            wait_until(lambda: not is_running(prefect.pid))
        finally:
            for one in (*below, prefect):
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def test_a_server_is_asked_for_its_version_with_its_user_and_password(monkeypatch):
    """Of which the password may have a colon."""
    asked = []

    class Guarded(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, base64.b64decode(self.headers["Authorization"].removeprefix("Basic "))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'"{version("prefect")}"'.encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_address[1]}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:one:two")
        wait_for_server()
        server.shutdown()
    assert asked == [("/api/admin/version", b"me:one:two")]


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, "Unauthorized", NO_CREDENTIALS),
        (403, "Forbidden", NO_CREDENTIALS),  # as proxies before a server say it
        (404, f'"{version("prefect")}"', "no Prefect server answers there"),
    ],
)
def test_an_error_is_not_taken_for_a_version(status: int, text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^http://there/api: {re.escape(said)}"):
        _check(httpx.Response(status, text=text), "http://there/api")


@pytest.mark.parametrize(("seconds", "said"), [(120, "behind"), (-120, "ahead of")])
def test_a_clock_that_is_off_either_way_is_refused(seconds: int, said: str) -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    its = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    with pytest.raises(UserError, match=said):
        _check_clock(httpx.Response(200, headers={"date": its}))


def test_without_a_date_in_the_answer_the_clock_is_taken_to_be_right() -> None:
    """Proxies may drop it."""
    _check_clock(httpx.Response(200))
