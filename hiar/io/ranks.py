"""A launcher for the processes of one job: it starts them, watches them, and ends all if one fails.

All run the same command, distinguished by RANK and WORLD_SIZE as under torchrun. If one ends early for whatever reason,
the others are ended too, and one line names the cause.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hiar.errors import ERROR_FILE, LOST, RunFailed, UserError
from hiar.io.launcher import RENDEZVOUS, own_place
from hiar.io.stopping import ENDED, asked_to_stop
from hiar.rollout.shared_memory import Neighbours, line_of

NEIGHBOURS = "HIAR_NEIGHBOURS"  # file descriptors of the sockets to the previous and the next process; "" for none
POLL = 0.05  # seconds between looks at the processes
SETTLE = 1.0  # seconds in which others may fail too, so that the cause is reported and not its consequence
GRACE = 3.0  # seconds between asking a process to end and killing it


def launch(command: Sequence[str], names: Sequence[str], *, teller: int, threads: int) -> None:
    """Run ``command`` once for each name, and wait for all.

    teller: the rank that gets this process's standard error. threads: OMP_NUM_THREADS of each, unless it is set.
    SIGTERM is passed on, and raises SystemExit once all have ended; those that train save a state first.

    Raises UserError with a rank's own message if it refused its input, and RunFailed if one failed.
    """
    with asked_to_stop() as stop, tempfile.TemporaryDirectory(prefix="hiar-ranks-") as folder:
        place = Path(folder)
        with line_of(len(names)) as line:
            processes = [_start(command, rank, line, place, rank == teller, threads) for rank in range(len(names))]
        try:
            codes, passed_on = _codes(processes), False
            while all(code in (None, 0, ENDED) or (passed_on and code == -signal.SIGTERM) for code in codes):
                if None not in codes:
                    break
                if stop() and not passed_on:
                    _signal(processes, signal.SIGTERM)
                    passed_on = True
                time.sleep(POLL)
                codes = _codes(processes)
            deadline = time.monotonic() + SETTLE
            while None in codes and time.monotonic() < deadline:
                time.sleep(POLL)
                codes = _codes(processes)
        finally:
            _end(processes)
        if not any(codes):
            return
        if ENDED in codes or (passed_on and -signal.SIGTERM in codes):
            raise SystemExit(ENDED)
        raise _cause(codes, names, place)


def launched() -> bool:
    """Whether this process is one of several; also starts a thread that ends it with its launcher, so call it once.

    Raises UserError when the environment fits no launcher.
    """
    if RENDEZVOUS in os.environ:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    return own_place() is not None


def neighbours() -> Neighbours | None:
    """Connections of this process, None unless `launch` started it; call it once, as it takes over the sockets."""
    numbers = os.environ.get(NEIGHBOURS)
    if numbers is None:
        return None
    before, after = (socket.socket(fileno=int(number)) if number else None for number in numbers.split(","))
    return before, after


def _end_with_launcher() -> None:
    os.read(0, 1)  # blocks while the launcher lives: it holds this pipe open and writes nothing
    os._exit(LOST)


def _start(
    command: Sequence[str], rank: int, line: Sequence[Neighbours], place: Path, tells: bool, threads: int
) -> subprocess.Popen[bytes]:
    world = len(line)
    numbers = [end.fileno() if end else None for end in line[rank]]
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        RENDEZVOUS: str(place / "rendezvous"),
        NEIGHBOURS: ",".join("" if number is None else str(number) for number in numbers),
        ERROR_FILE: str(place / f"error-{rank}"),
    }
    with (place / f"log-{rank}").open("wb") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=None if tells else log,
            start_new_session=True,
            pass_fds=[number for number in numbers if number is not None],
        )


def _codes(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Exit codes, None for processes that still run."""
    return [process.poll() for process in processes]


def _signal(processes: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """Signal the process groups of those that still run."""
    for process in processes:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Send SIGTERM to those that still run, after `GRACE` seconds SIGKILL."""
    deadline = time.monotonic() + GRACE
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(processes, number)
        while number == signal.SIGTERM and time.monotonic() < deadline and any(p.poll() is None for p in processes):
            time.sleep(POLL)
    for process in processes:
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _cause(codes: Sequence[int | None], names: Sequence[str], place: Path) -> Exception:
    """The first cause: a signal, otherwise a rank's own message, otherwise that of a rank that lost another."""
    for name, code in zip(names, codes, strict=True):
        if code is not None and code < 0:
            return RunFailed(f"{name} was killed by {signal.Signals(-code).name}; the same command resumes from here")
    broken = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
    broken.sort(key=lambda rank: codes[rank] == LOST)
    rank, code = broken[0], codes[broken[0]]
    error, log = place / f"error-{rank}", place / f"log-{rank}"
    if error.exists():
        message = error.read_text(encoding="utf-8").strip()
        return UserError(message) if code == 2 else RunFailed(message)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    return RunFailed(f"{names[rank]} ended with exit code {code}{said}")
