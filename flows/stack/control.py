"""Start, stop and check the stack's supervisor: one per project, and everything it started dies with it.

supervisord is the first process of a PID namespace. The `unshare` outside it holds the lock on the stack's folder and
ends after the kernel has killed everything inside: a free lock means that nothing of the stack is alive.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flows.devices import device_names
from flows.stack.health import is_healthy, prepare
from flows.stack.postgres import make_cluster
from flows.stack.settings import CONFIG, PASSWORD, Stack, check_ports, environment_of, note_ports
from hiar.errors import RunFailed, UserError
from hiar.io.files import write_text, writing
from hiar.io.loopback import check_loopback

SERVERS = ("s3", "prefect", "mlflow")
HEALTHY_SECONDS = 300.0
ENDING_SECONDS = 150.0  # workers end first, after their stages have written checkpoints, then the servers
RUNNING = "RUNNING"  # supervisor's name of the state
LEAST_FREE = 100e6  # bytes of free disk that servers and stages need


def up(stack: Stack) -> int:
    """Start the stack unless it is running, wait until it is healthy, print its addresses; return the exit code.

    Raises UserError for a port in use and for missing programs, RunFailed if the stack does not get healthy.
    """
    began = time.monotonic()
    with _lock(stack) as lock:
        if lock is not None:
            check_loopback()
            check_ports(stack.ports)
            _start(stack, lock)
    for server in SERVERS:
        _wait(stack, server, began)
    prepare(stack)
    while not all(state == RUNNING for state in _states(stack).values()):
        _check_time(stack, "a worker or the watcher", began)
    if lock is None:
        print("the stack is already running")
    for server in SERVERS:
        print(f"{server:8} {stack.url(server)}")
    print(f"healthy after {time.monotonic() - began:.0f} s; keys in {stack.folder / 'secrets.env'}, logs beside it")
    return 0


def down(stack: Stack) -> int:
    """Stop the whole stack: SIGTERM first, SIGKILL for what is left; return the exit code.

    Raises RunFailed if it does not end and its process ID is unknown.
    """
    with _lock(stack) as lock:
        if lock is not None:
            print("the stack is not running")
            return 0
    with suppress(Exception):  # if it is just starting, or damaged, it is killed below
        _supervisor(stack).shutdown()
    end = time.monotonic() + ENDING_SECONDS
    while not _is_free(stack):
        if time.monotonic() > end:
            _kill(stack)
        time.sleep(0.2)
    print("the stack has stopped; its data stay in " + os.fspath(stack.folder))
    return 0


def _kill(stack: Stack) -> None:
    try:
        os.kill(int((stack.folder / "pid").read_text()), signal.SIGKILL)
    except FileNotFoundError:  # its start was interrupted
        lock = stack.folder / "lock"
        raise RunFailed(f"the stack does not stop; kill the process holding {lock} (fuser {lock} shows it)") from None


def status(stack: Stack) -> int:
    """Print the state of each program and whether each server answers; return the exit code, 0 if all is well."""
    if _is_free(stack):
        print("the stack is not running; start it with make stack")
        return 1
    healthy = {server: is_healthy(stack, server) for server in SERVERS}
    states = _states(stack)
    for name, state in states.items():
        said = f"{stack.url(name)} {'answers' if healthy[name] else 'does not answer'}" if name in healthy else ""
        print(f"{name:12} {state:10} {said}".rstrip())
    if full := shutil.disk_usage(stack.folder).free < LEAST_FREE:
        print(f"{stack.folder}: the disk is full; free some space; what has stopped restarts by itself")
    return 0 if not full and all(healthy.values()) and all(state == RUNNING for state in states.values()) else 1


def _start(stack: Stack, lock: int) -> None:
    """Start supervisord, which inherits the lock. Raises UserError if there are no PID namespaces."""
    contained = stack.contained.split()
    if shutil.which(contained[0]) is None or subprocess.call([*contained, "true"], stderr=subprocess.DEVNULL) != 0:
        raise UserError(
            "unshare: cannot create a PID namespace here, without which a killed server's processes would live on; "
            "install util-linux, allow user namespaces (sysctl kernel.unprivileged_userns_clone=1), or use infra/"
        )
    environment = environment_of(stack, len(device_names()))
    if stack.postgres:
        make_cluster(stack.folder / "postgres", stack.keys[PASSWORD])
    note_ports(stack)
    (stack.folder / "pid").unlink(missing_ok=True)  # of an earlier start; another process may have that number
    command = [*contained, sys.executable, "-m", "flows.stack.supervisor", "--configuration"]
    with writing(stack.folder), (stack.folder / "logs" / "start.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, os.fspath(CONFIG / "supervisord.conf")],
            cwd=stack.project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
        )
    write_text(stack.folder / "pid", f"{process.pid}\n")


@contextmanager
def _lock(stack: Stack) -> Iterator[int | None]:
    """The descriptor that holds the stack's lock; None if a running stack holds it."""
    path = stack.folder / "lock"
    with writing(path):
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def _is_free(stack: Stack) -> bool:
    with _lock(stack) as lock:
        return lock is not None


def _wait(stack: Stack, server: str, began: float) -> None:
    while not is_healthy(stack, server):
        _check_time(stack, server, began)


def _check_time(stack: Stack, what: str, began: float) -> None:
    """Wait a little. Raises RunFailed when the stack has ended, or has taken too long."""
    if _is_free(stack):
        raise RunFailed(f"the stack stopped while starting: {_last_line(stack.folder / 'logs' / 'start.log')}")
    if time.monotonic() > began + HEALTHY_SECONDS:
        logs = stack.folder / "logs"
        raise RunFailed(f"{what}: not healthy after {HEALTHY_SECONDS:.0f} s; see {logs}, then make stack-down")
    time.sleep(0.3)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"


def _states(stack: Stack) -> dict[str, str]:
    """The state of each program as supervisor has it; "AWAY" for supervisor itself while it does not answer."""
    try:
        found = _supervisor(stack).getAllProcessInfo()
    except Exception:
        return {"supervisor": "AWAY"}
    # With SQLite, PostgreSQL is not started.
    return {
        program["name"]: program["statename"] for program in found if program["start"] or program["name"] != "postgres"
    }


def _supervisor(stack: Stack) -> Any:
    from xmlrpc.client import ServerProxy

    from supervisor.xmlrpc import SupervisorTransport

    address = f"unix://{stack.folder / 'supervisor.sock'}"
    return ServerProxy("http://127.0.0.1", SupervisorTransport(serverurl=address)).supervisor
