"""`python -m flows.stack.worker --pool POOL --limit N`: a Prefect worker that drains on SIGTERM.

Prefect's own lets its runs finish, however long they take, or leaves them; here SIGTERM stops the search for new runs,
reaches the runs at work, which end their stages, and the worker is gone within GRACE seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

GRACE = 30.0  # seconds for the runs at work


def main() -> int:
    """Run a worker until it ends or is asked to; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.stack.worker")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--limit", required=True)
    options = parser.parse_args()
    # With its type it makes the pool where there is none.
    _wait_for_server()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
    # In a session of its own, so that signals for the group reach this process alone.
    worker = subprocess.Popen(
        [*command, "--pool", options.pool, "--limit", options.limit], stdin=subprocess.DEVNULL, start_new_session=True
    )

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        _drain(worker)
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return worker.wait()


def _wait_for_server() -> None:
    """Wait until Prefect's server answers: a worker that starts before gives up its events for good."""
    import httpx

    while True:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{os.environ['PREFECT_API_URL']}/health", timeout=5, trust_env=False).is_success:
                return
        time.sleep(0.5)


def _drain(worker: subprocess.Popen[bytes]) -> None:
    """Halt a worker, so that it starts nothing more, end its runs, then the worker."""
    import psutil

    worker.send_signal(signal.SIGSTOP)
    process = psutil.Process(worker.pid)
    runs = process.children()
    for run in runs:
        run.terminate()
    end = time.monotonic() + GRACE
    while time.monotonic() < end and any(_is_alive(run) for run in runs):
        time.sleep(0.1)
    left = [*process.children(recursive=True), process]
    for one in left:
        one.kill()
    worker.wait()


def _is_alive(run: object) -> bool:
    """Whether a process still works: the halted worker does not notice that its child has ended."""
    import psutil

    assert isinstance(run, psutil.Process)
    try:
        return run.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main())
