"""A stack from start to end, with small stand-ins for its servers: starting, preparing and stopping."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import environment
from ports import free_ports
from waiting import wait_until

from flows.stack import control, health
from flows.stack.control import down, up
from flows.stack.settings import BUCKETS, PORTS, open_stack
from hiar.errors import RunFailed

PATIENCE = 60.0  # seconds
HEAD = """
[supervisord]
nodaemon = true
logfile = %(ENV_HIAR_STACK)s/logs/supervisord.log
pidfile = %(ENV_HIAR_STACK)s/supervisord.pid
[unix_http_server]
file = %(ENV_HIAR_STACK)s/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""
SERVERS = """
[program:servers]
command = %(ENV_HIAR_PYTHON)s %(ENV_HIAR_PROJECT)s/servers.py
directory = %(ENV_HIAR_PROJECT)s
"""
# All three servers in one process, which logs its start and end. The S3 store refuses each bucket's first object.
PROGRAM = """
import os, pathlib, signal, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

def note(text):
    with open("events", "a") as file:
        file.write(text + "\\n")

class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held, refused = {}, set()

    def say(self, code, body=b""):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path.partition("?")[0] in ("/", "/api/health", "/health"):
            self.say(200, b"<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>")
        else:
            self.say(200, self.held[self.path.partition("?")[0]])

    def do_PUT(self):
        place = self.path.partition("?")[0]
        self.held[place] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        again = not pathlib.Path("shut").exists() and (place.count("/") == 1 or place in self.refused)
        self.refused.add(place)
        note(f"put {place} {again}")
        self.say(200 if again else 503)

    def do_DELETE(self):
        del self.held[self.path.partition("?")[0]]
        self.say(204)

    def do_POST(self):
        pool = self.rfile.read(int(self.headers["Content-Length"]))
        made = pool in self.held
        self.held[pool] = b""
        self.say(500 if pathlib.Path("broken").exists() else 409 if made else 201)

    def log_message(self, *_):
        pass

def end(*_):
    note("end")
    os._exit(0)

signal.signal(signal.SIGTERM, end)
note("begin")
for name in ("S3", "PREFECT", "MLFLOW"):
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ[f"HIAR_{name}_PORT"])), Answer)
    threading.Thread(target=server.serve_forever).start()
"""
# In place of the system's, which not every user may run: makes no namespace and starts the given command.
UNSHARE = '#!/bin/sh\nwhile case "$1" in -*) true ;; *) false ;; esac; do shift; done\nexec "$@"\n'


@pytest.fixture
def small_stack(short_folder, clean_env, monkeypatch):
    """The folder of a project whose stack runs the stand-ins at ports of its own."""
    write_program(Path(os.environ["PATH"].partition(os.pathsep)[0]) / "unshare", UNSHARE)
    names = [line.partition("=")[0] for line in PORTS.read_text().splitlines() if line.startswith("HIAR_")]
    for name, port in zip(names, free_ports(len(names)), strict=True):
        monkeypatch.setenv(name, str(port))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there, and nobody should connect
    (short_folder / "servers.py").write_text(PROGRAM)
    (short_folder / "supervisord.conf").write_text(HEAD + SERVERS)
    monkeypatch.setattr(control, "CONFIG", short_folder)
    monkeypatch.setattr(control, "HEALTHY_SECONDS", PATIENCE)
    yield short_folder
    with suppress(FileNotFoundError, psutil.NoSuchProcess):  # left by a failed test
        supervisor = psutil.Process(int((short_folder / ".hiar" / "stack" / "pid").read_text()))
        if os.fspath(short_folder) in " ".join(supervisor.cmdline()):
            for one in [*supervisor.children(recursive=True), supervisor]:
                one.kill()


def write_program(path, text):
    path.write_text(text)
    path.chmod(0o755)


def test_up_starts_one_ready_stack_and_down_ends_it(small_stack, monkeypatch, capsys):
    stack = open_stack(small_stack)
    assert up(stack) == 0
    try:
        number = int((stack.folder / "pid").read_text())
        assert os.getsid(number) == number  # Ctrl-C in its starter's terminal does not reach it
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines[:3]] == [[name, stack.url(name)] for name in control.SERVERS]
        assert up(stack) == 0
        assert capsys.readouterr().out.startswith("the stack is already running\n")
        monkeypatch.setattr(health, "STORE_SECONDS", 0.0)
        (small_stack / "shut").touch()
        with pytest.raises(RunFailed, match=r"bucket 'hiar': the store does not serve it \(ClientError\)"):
            up(stack)
        (small_stack / "shut").unlink()
        (small_stack / "broken").touch()
        with pytest.raises(RunFailed, match="work pool 'experiments': Prefect's server answers 500"):
            up(stack)
    finally:
        assert down(stack) == 0
    assert control._is_free(stack)
    events = (small_stack / "events").read_text().splitlines()
    assert (events[0], events[-1], events.count("begin")) == ("begin", "end", 1)  # SIGTERM reached its children
    for bucket in BUCKETS:
        refused = events.index(next(one for one in events if one.startswith(f"put /{bucket}/")))
        assert events[refused].endswith("False")
        assert events[refused - 1] == f"put /{bucket} True"
        assert any(one.startswith(f"put /{bucket}/") and one.endswith("True") for one in events[refused:])


def test_a_stack_that_never_gets_healthy_is_reported_and_one_that_does_not_end_is_killed(small_stack, monkeypatch):
    (small_stack / "supervisord.conf").write_text(HEAD)
    stack = open_stack(small_stack)
    monkeypatch.setattr(control, "ENDING_SECONDS", 0.0)
    (stack.folder / "pid").write_text("1\n")  # from before a reboot: the pid now belongs to another process
    known, write = [], control.write_text
    monkeypatch.setattr(control, "write_text", lambda path, text: known.append(path.exists()) or write(path, text))
    with control._lock(stack) as lock:
        with pytest.raises(RunFailed, match=rf"the stack does not stop; kill the process holding {stack.folder}/lock "):
            (stack.folder / "pid").rename(small_stack / "pid")
            down(stack)
        (small_stack / "pid").rename(stack.folder / "pid")
        control._start(stack, lock)
    assert known == [False]
    number = int((stack.folder / "pid").read_text())
    socket = stack.folder / "supervisor.sock"
    wait_until(socket.exists)
    assert not control._is_free(stack)  # the supervisor itself holds the lock now
    control._check_time(stack, "s3", time.monotonic())
    rescues = []  # ends the test even if nothing is refused or killed
    rescue = threading.Timer(PATIENCE, lambda: rescues.append(os.kill(number, signal.SIGKILL)))
    rescue.start()
    with pytest.raises(RunFailed, match=r"^s3: not healthy after .* then make stack-down$"):
        control._wait(stack, "s3", time.monotonic() - control.HEALTHY_SECONDS - 1)
    socket.unlink()
    assert control._states(stack) == {"supervisor": "AWAY"}  # not healthy, though no program reports it
    assert down(stack) == 0
    rescue.cancel()
    assert not rescues
    assert control._is_free(stack)
    wait_until(lambda: not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    ("unshare", "code", "said"),
    [
        ("exit 1", 2, "error: unshare: cannot create a PID namespace here"),
        (
            'case "$*" in *supervisord*) echo unshare: no; exit 3 ;; esac',
            1,
            "error: the stack stopped while starting: ",
        ),
    ],
)
def test_a_start_that_fails_is_a_line_and_an_exit_code(unshare, code, said, small_stack):
    place = Path(os.environ["PATH"].partition(os.pathsep)[0])
    write_program(place / "unshare", f"#!/bin/sh\n{unshare}\n")
    ports = {name: value for name, value in os.environ.items() if name.startswith("HIAR_")}
    run = subprocess.run(
        [sys.executable, "-m", "flows.stack", "up"],
        cwd=small_stack,
        env=environment() | ports,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (code, "", 1)
    assert run.stderr.startswith(said)
