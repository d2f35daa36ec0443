"""`python -m flows.stack.worker --pool POOL --limit N`: a Prefect worker of processes that drains on SIGTERM.

Prefect's own worker lets its runs finish, however long they take, or abandons them. Here, on SIGTERM, it takes no new
runs, the current runs get the signal and end their stages, and all is gone within GRACE seconds. If Prefect's worker
dies, its runs end too and are resumed by the next worker; it does not outlive this process. Further options go to
`prefect worker start`, as --base-job-template or --with-healthcheck.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from types import FrameType
from typing import Any, NoReturn

from flows.stack.reach import time_of, wait_for_server
from flows.stack.settings import DATABASES
from hiar.errors import UserError, say

GRACE = 30.0  # seconds for the runs at work
SKEW = 60.0  # seconds between clocks that harm nothing
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of linux/prctl.h


def main() -> int:
    """Run a worker until it ends or gets SIGTERM; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.stack.worker")
    parser.add_argument("--pool", required=True)
    parser.add_argument("--limit", required=True)
    options, others = parser.parse_known_args()
    for name in DATABASES:
        os.environ.pop(name, None)  # a password may be in it, which runs have no use for
    try:
        _check_clock(wait_for_server())  # a worker that starts before it answers gives up its events for good
    except UserError as error:
        say(str(error))
        return 2
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the worker leaves is this process's
    # With --type it creates the pool if there is none.
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process"]
    worker = subprocess.Popen(
        [*command, "--pool", options.pool, "--limit", options.limit, *others],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # signals to the process group reach this process alone
        preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 (no thread is at work yet)
    )

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        worker.send_signal(signal.SIGSTOP)  # so that it starts no run, and does not react to the end of its runs
        _end_runs()
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    code = _wait_for(worker)
    _end_runs()
    return code


def _wait_for(worker: subprocess.Popen[bytes]) -> int:
    """The exit code of the worker, once it ends; also reaps orphaned processes that killed runs have left.

    These are this process's children by then: without it they would stay zombies, each with a process ID.
    """
    while True:
        number, status = os.waitpid(-1, 0)
        if number == worker.pid:
            worker.returncode = os.waitstatus_to_exitcode(status)
            return worker.returncode


def _end_runs() -> None:
    """End the flow runs below this process, which end their stages; then kill what is left, including the worker."""
    import psutil

    runs = [one for one in psutil.Process().children(recursive=True) if "prefect.engine" in _command(one)]
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            run.terminate()
    end = time.monotonic() + GRACE
    while time.monotonic() < end and any(_is_alive(run) for run in runs):
        time.sleep(0.1)
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            one.kill()


def _command(process: object) -> list[str]:
    import psutil

    assert isinstance(process, psutil.Process)
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _is_alive(process: object) -> bool:
    """Whether a process still runs and is no zombie: a stopped worker does not reap its children."""
    import psutil

    assert isinstance(process, psutil.Process)
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _check_clock(answer: Any) -> None:
    """Raise UserError where this machine's clock is far from the server's: its runs would begin at other times."""
    ahead = (datetime.now(UTC) - time_of(answer)).total_seconds()
    if abs(ahead) > SKEW:
        told = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of Prefect's server"
        raise UserError(
            f"the clock of this machine is {told}, so runs would start at the wrong time; set it, for "
            "example with timedatectl set-ntp true"
        )


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    sys.exit(main())
