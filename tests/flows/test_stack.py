"""The stack's settings, status and supervisor; a wrong port or key is one line before anything starts."""

import http.server
import ipaddress
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import pytest
from commands import environment
from ports import free_ports
from supervisor import loggers
from waiting import wait_until

from flows.stack import control, health
from flows.stack.__main__ import main as stack_main
from flows.stack.control import down, status
from flows.stack.settings import DATABASES, PASSWORD, check_ports, environment_of, note_ports, open_stack, read_ports
from flows.stack.supervisor import Log
from flows.stack.watcher import SILENCE
from hiar.errors import RunFailed, UserError


@pytest.mark.parametrize("value", ["0", "65536", "http", "-1", "8e3", "١"])
def test_an_invalid_port_is_refused(value):
    with pytest.raises(UserError, match=r"HIAR_S3_PORT = .*: is not a port; .*make stack HIAR_S3_PORT=8333"):
        read_ports({"HIAR_S3_PORT": value})


def test_an_empty_port_setting_means_the_default():
    assert read_ports({"HIAR_S3_PORT": "", "HIAR_MLFLOW_PORT": "5001"}) == read_ports({}) | {"HIAR_MLFLOW_PORT": 5001}


def test_two_servers_at_one_port_are_refused():
    (port,) = free_ports(1)
    with pytest.raises(UserError, match=f"HIAR_B_PORT = {port}: collides with HIAR_A_PORT on port {port}"):
        check_ports({"HIAR_A_PORT": port, "HIAR_B_PORT": port})


def test_an_unknown_command_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["flows.stack", "sideways"])
    with pytest.raises(SystemExit) as ended:
        stack_main()
    assert ended.value.code == 2
    assert "'sideways' (choose from" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_taken_port_ends_the_start_with_one_line_and_leaves_no_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taken")  # a short name: a socket's path may have a hundred bytes
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run = subprocess.run(
            [sys.executable, "-m", "flows.stack", "up"],
            cwd=folder,
            env=environment() | {"HIAR_PREFECT_PORT": str(port)},
            capture_output=True,
            text=True,
        )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(f"error: HIAR_PREFECT_PORT = {port}: address already in use; choose another, as in")
    assert run.stderr.count("\n") == 1
    assert not (folder / ".hiar" / "stack" / "pid").exists()


def test_keys_are_drawn_once_and_their_owner_alone_reads_them(short_folder):
    first = open_stack(short_folder)
    assert open_stack(short_folder).keys == first.keys
    assert open_stack(short_folder / "b").keys["AWS_SECRET_ACCESS_KEY"] != first.keys["AWS_SECRET_ACCESS_KEY"]
    for name in ("secrets.env", "s3.json"):
        assert stat.S_IMODE((first.folder / name).stat().st_mode) == 0o600
    users = first.folder / "s3.json"
    assert first.keys["AWS_SECRET_ACCESS_KEY"] in users.read_text()
    written = users.stat().st_ino
    open_stack(short_folder)
    assert users.stat().st_ino == written  # not rewritten: a stack with a full disk can still be inspected and stopped
    users.write_text("of other keys")
    open_stack(short_folder)
    assert first.keys["AWS_SECRET_ACCESS_KEY"] in users.read_text()


@pytest.mark.parametrize("text", ["", "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=\n", "half of a wri"])
def test_an_error_names_damaged_keys_and_their_file(text, short_folder):
    path = open_stack(short_folder).folder / "secrets.env"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{path}: AWS_[A-Z_]+: has no value; give it one, or remove the file"):
        open_stack(short_folder)


def test_a_restarted_stack_keeps_its_ports_and_its_database(short_folder, monkeypatch):
    for name in ("HIAR_STACK_DATABASE", "HIAR_PREFECT_PORT", "HIAR_MLFLOW_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HIAR_PREFECT_PORT", "4201")
    stack = open_stack(short_folder)
    note_ports(stack)
    monkeypatch.delenv("HIAR_PREFECT_PORT")
    assert open_stack(short_folder).ports == stack.ports
    monkeypatch.setenv("HIAR_PREFECT_PORT", "4202")
    assert open_stack(short_folder).url("prefect") == "http://127.0.0.1:4202"
    assert not stack.postgres
    (stack.folder / "postgres").mkdir()
    assert open_stack(short_folder).postgres
    monkeypatch.setenv("HIAR_STACK_DATABASE", "sqlite")
    assert not open_stack(short_folder).postgres


def test_a_folder_too_long_for_a_socket_is_refused(tmp_path):
    with pytest.raises(UserError, match="path is too long for a Unix socket"):
        open_stack(tmp_path / os.fspath("x" * 90))


def test_the_s3_stores_second_port_is_checked_too():
    (second,) = free_ports(1)
    with pytest.raises(UserError, match=f"HIAR_X_PORT = {second}: collides with HIAR_S3_PORT on port {second}"):
        check_ports({"HIAR_S3_PORT": second - 10000, "HIAR_X_PORT": second})
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = rf"HIAR_S3_PORT = {port - 10000}: address already in use \(at {port}\)"
        with pytest.raises(UserError, match=line):
            check_ports({"HIAR_S3_PORT": port - 10000})
    with pytest.raises(UserError, match=r"HIAR_S3_PORT = 65530: .* \(at 75530\); choose another"):
        check_ports({"HIAR_S3_PORT": 65530})


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_programs_get_their_settings_and_the_password_only_in_database_addresses(
    short_folder, clean_env, monkeypatch, kind
):
    monkeypatch.setenv("HIAR_STACK_DATABASE", kind)
    monkeypatch.setenv("no_proxy", "own.example")
    before = os.umask(0o022)
    try:
        stack = open_stack(short_folder)
        assert os.umask(0o022) == 0o022  # the caller's umask is restored
    finally:
        os.umask(before)
    given = environment_of(stack, 3)
    password = stack.keys[PASSWORD]
    assert len(password) >= 32
    holders = {name for name, value in given.items() if password in value}
    assert holders == (set(DATABASES) if kind == "postgresql" else set())
    assert {name: given[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}.items() <= stack.keys.items()
    assert given["HIAR_POSTGRES"] == ("true" if kind == "postgresql" else "false")
    for name, server in (
        ("PREFECT_API_URL", "prefect"),
        ("MLFLOW_TRACKING_URI", "mlflow"),
        ("MLFLOW_S3_ENDPOINT_URL", "s3"),
    ):
        address = urlsplit(given[name])
        assert ipaddress.ip_address(address.hostname).is_loopback
        assert address.port == stack.ports[f"HIAR_{server.upper()}_PORT"]
        assert address.hostname in given["no_proxy"].split(",")  # a proxy could not reach it
    assert "own.example" in given["no_proxy"].split(",")
    assert 2 * int(given["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) < SILENCE["RUNNING"].total_seconds()  # one may be lost
    off = ("DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "MLFLOW_DISABLE_TELEMETRY")
    assert [given[name] for name in off] == ["1", "false", "true"]  # telemetry is off
    if kind == "sqlite":
        assert all(str(stack.folder) in given[name] for name in DATABASES)
        assert "HIAR_POSTGRES_PORT" not in stack.ports


def test_an_unknown_database_and_a_missing_s3_program_are_refused(short_folder, clean_env, monkeypatch):
    monkeypatch.setenv("HIAR_STACK_DATABASE", "mysql")
    with pytest.raises(UserError, match="HIAR_STACK_DATABASE = mysql: is not a database of the stack"):
        open_stack(short_folder)
    monkeypatch.setenv("HIAR_STACK_DATABASE", "")
    stack = open_stack(short_folder)
    assert not stack.postgres
    monkeypatch.setenv("PATH", str(short_folder))
    monkeypatch.setattr(sys, "executable", str(short_folder / "python"))
    with pytest.raises(UserError, match="weed: is not in PATH; install the S3 store"):
        environment_of(stack, 1)


def test_a_stopped_stack_and_one_that_ends_while_it_starts_are_reported(short_folder, capsys):
    stack = open_stack(short_folder)
    assert status(stack) == 1
    assert down(stack) == 0
    assert capsys.readouterr().out == ("the stack is not running; start it with make stack\nthe stack is not running\n")
    (stack.folder / "logs" / "start.log").write_text("one\nunshare: no\n\n")
    with pytest.raises(RunFailed, match=r"the stack stopped while starting: unshare: no$"):
        control._check_time(stack, "s3", time.monotonic())


SUPERVISOR = """
[supervisord]
nodaemon = true
logfile = {folder}/supervisord.log
pidfile = {folder}/supervisord.pid
[unix_http_server]
file = {folder}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[program:prefect]
command = sleep 600
startsecs = 0
[program:postgres]
command = sleep 600
autostart = false
[program:worker]
command = sh -c "test -e {folder}/mended && exec sleep 600"
startretries = 0
"""
# Prints increasing numbers, and writes the last one to another disk.
TALKS = """
import itertools, pathlib, sys, time
for number in itertools.count():
    print(f"said {number}", flush=True)
    pathlib.Path(sys.argv[1]).write_text(str(number))
    time.sleep(0.01)
"""
HEALTH = {"/api/health": "prefect", "/health": "mlflow", "/": "s3"}
BUCKETS = b"<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>"


def test_status_lists_every_program_and_exits_with_1_if_something_is_unhealthy(
    short_folder, clean_env, monkeypatch, capsys
):
    """With the test's own supervisor, and one HTTP server in place of all servers that are healthy or not."""
    healthy = set()

    class Servers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if HEALTH[self.path.partition("?")[0]] in healthy else 503)
            self.end_headers()
            self.wfile.write(BUCKETS)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Servers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in control.SERVERS:
            monkeypatch.setenv(f"HIAR_{name.upper()}_PORT", str(server.server_address[1]))
        stack = open_stack(short_folder)
        (short_folder / "conf").write_text(SUPERVISOR.format(folder=stack.folder))
        command = [sys.executable, "-m", "supervisor.supervisord", "--configuration", short_folder / "conf"]
        supervisor = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with control._lock(stack):  # as another running command would hold it
                wait_until(lambda: control._states(stack).get("worker") == "FATAL")
                assert control._states(stack) == {"prefect": "RUNNING", "worker": "FATAL"}  # with SQLite
                for name in control.SERVERS:
                    assert not health.is_healthy(stack, name)
                    healthy.add(name)
                    assert health.is_healthy(stack, name)
                assert status(stack) == 1
                lines = capsys.readouterr().out.splitlines()
                (stack.folder / "mended").touch()
                control._supervisor(stack).startProcess("worker")
                assert status(stack) == 0
                with monkeypatch.context() as patch:
                    patch.setattr(control, "LEAST_FREE", float("inf"))
                    assert status(stack) == 1
                full = capsys.readouterr().out.splitlines()[-1]
                healthy.remove("s3")
                assert status(stack) == 1
                with control._lock(stack) as second:
                    assert second is None
        finally:
            supervisor.terminate()
            supervisor.wait()
        server.shutdown()
    assert lines[0].split(maxsplit=2) == ["prefect", "RUNNING", f"{stack.url('prefect')} answers"]
    assert lines[1].split() == ["worker", "FATAL"]
    assert full.startswith(f"{stack.folder}: the disk is full; free some space")


def test_the_supervisor_outlives_a_full_disk_and_logs_again_once_there_is_room(short_folder, tmp_path):
    """Its own errors go to that disk, too; only output written while it is full is lost."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", short_folder], capture_output=True
    ).returncode:
        pytest.skip("a small file system cannot be mounted here")
    number_file, program, log = tmp_path / "noted", tmp_path / "talks.py", short_folder / "talks.log"
    program.write_text(TALKS)
    settings = f"[program:talks]\ncommand = {sys.executable} {program} {number_file}\nstdout_logfile = {log}\n"
    (tmp_path / "conf").write_text(SUPERVISOR.format(folder=short_folder) + settings)

    def last_number():
        return int(number_file.read_text() or 0) if number_file.exists() else 0

    def is_logged(number):
        return f"said {number}\n" in log.read_text()

    command = [sys.executable, "-m", "flows.stack.supervisor", "--configuration", tmp_path / "conf"]
    try:
        with (short_folder / "errors").open("wb") as errors:
            supervisor = subprocess.Popen(command, stdout=errors, stderr=errors)
        try:
            wait_until(lambda: log.exists() and is_logged(0))
            with pytest.raises(OSError, match="No space left"), (short_folder / "blob").open("wb", buffering=0) as blob:
                while True:
                    blob.write(bytes(1024))
            full = last_number()
            wait_until(lambda: supervisor.poll() is not None or last_number() > full + 500)  # exceeds a buffer
            assert supervisor.poll() is None
            (short_folder / "blob").unlink()
            after = last_number() + 100
            wait_until(lambda: is_logged(after))
        finally:
            supervisor.terminate()
            supervisor.wait()
    finally:
        subprocess.run(["umount", "-l", short_folder], check=True)


def test_a_log_whose_folder_is_lost_and_restored_is_written_again(tmp_path):
    """It can be neither rotated nor reopened meanwhile, and its stream is closed."""
    place = tmp_path / "logs" / "one.log"
    place.parent.mkdir()
    log = Log(str(place), maxBytes=16)

    def write(text):
        log.emit(loggers.LogRecord(loggers.LevelsByName.INFO, text))

    shutil.rmtree(place.parent)
    for _ in range(2):
        write("a line longer than the file may be")
    place.parent.mkdir()
    for text in ("reopens", "is kept"):
        write(text)
    assert "is kept" in place.read_text()
