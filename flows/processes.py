"""Commands that leave no orphans: each runs in its own process group, which is stopped as a whole.

The group's leader (flows/leader.py) ends the group when this process dies, even by SIGKILL. It inherits the inheritable
locks of this process, so that what they protect stays locked until the group has ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path

from flows.server import OWN_NO_PROXY

GRACE = 25.0  # seconds between asking a group to end and killing it; a stage writes a checkpoint meanwhile
LEADER = [sys.executable, "-I", "-S", os.fspath(Path(__file__).with_name("leader.py"))]


def stage_environment() -> dict[str, str]:
    """The environment of a stage: this Python's `hiar` comes first in PATH, and output is unbuffered."""
    path = os.pathsep.join((os.fspath(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    proxies = {}
    if OWN_NO_PROXY in os.environ:
        proxies = dict.fromkeys(("NO_PROXY", "no_proxy"), os.environ[OWN_NO_PROXY])
    return {**os.environ, **proxies, "PATH": path, "PYTHONUNBUFFERED": "1"}


def shell_code(code: int) -> int:
    """The exit code of a process as in a shell: 128 + N if signal N ended it."""
    return 128 - code if code < 0 else code


class Stopped(Exception):
    """The groups are being stopped: nothing new is started."""


class ProcessGroups:
    """The running commands; ``stop`` ends them from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leaders: set[subprocess.Popen[str]] = set()
        self._stopping = False

    def check(self) -> None:
        """Raise Stopped after ``stop``: for threads that wait, which would otherwise outlast it."""
        if self._stopping:
            raise Stopped

    def run(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], on_line: Callable[[str], None]
    ) -> int:
        """Run ``command`` in ``folder``; every line it prints, errors included, goes to ``on_line`` as it comes.

        Returns its exit code, -N when signal N ended it. Raises Stopped instead of starting after ``stop``.
        """
        with self._lock:
            self.check()
            leader = subprocess.Popen(
                [*LEADER, *command],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.PIPE,  # which closes when this process ends, however it does
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                close_fds=False,  # only locks are inheritable, those to be held until the group has ended
            )
            self._leaders.add(leader)
        try:
            assert leader.stdout is not None
            for line in leader.stdout:
                on_line(line.rstrip())
            return leader.wait()
        finally:
            _end({leader}, GRACE)  # when on_line raised, or the command left something behind
            assert leader.stdin is not None
            leader.stdin.close()
            with self._lock:
                self._leaders.discard(leader)

    def stop(self, grace: float = GRACE) -> None:
        """End every group: SIGTERM first, SIGKILL for what is left after ``grace`` seconds."""
        with self._lock:
            self._stopping = True
            leaders = set(self._leaders)
        _end(leaders, grace)


def _end(leaders: Set[subprocess.Popen[str]], grace: float) -> None:
    deadline = time.monotonic() + grace
    for leader in leaders:
        _signal(leader, signal.SIGTERM)
    while any(_signal(leader, 0) for leader in leaders) and time.monotonic() < deadline:
        time.sleep(0.05)
    for leader in leaders:
        _signal(leader, signal.SIGKILL)


def _signal(leader: subprocess.Popen[str], number: int) -> bool:
    """Signal the group of ``leader``; return whether the group exists."""
    leader.poll()  # reaps an ended leader, which would otherwise count as alive
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, number)
        return True
    return False
