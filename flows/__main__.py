"""`python -m flows [EXPERIMENT] [--force]`: the experiment flow in this process; signals end it without orphans.

`hiar run` starts this. The exit code is that of the failed stage, whose error is the last line.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import signal
import sys
from typing import NoReturn

from flows.pipeline import MISTAKE, StageFailure
from hiar.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main() -> int:
    """Run the flow and return the exit code."""
    for number in SIGNALS:
        signal.signal(number, _end)
    if sys.platform == "linux":  # if `hiar run` dies, even by SIGKILL, this process gets SIGTERM
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    parser = argparse.ArgumentParser(prog="python -m flows")
    parser.add_argument("experiment", nargs="?")
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args()

    try:
        return _run(options.experiment, options.force)
    except StageFailure as failure:
        return _fail(str(failure), failure.code)
    except UserError as error:
        return _fail(str(error), MISTAKE)


def _run(name: str | None, force: bool) -> int:
    """Run the flow; return 0, or 1 if its server fails. Raises StageFailure, and UserError, also if none answers."""
    from httpx import HTTPError
    from prefect.exceptions import PrefectException

    from flows.server import reach_server

    reach_server()

    from flows.experiment import experiment

    try:
        state = experiment(name=name, force=force, return_state=True)
    except (HTTPError, PrefectException) as error:
        return _fail(f"Prefect's server: {type(error).__name__}: {error}; the same command resumes from here", 1)
    logging.getLogger("prefect").setLevel(logging.WARNING)  # else its last message would follow our last line
    if state.is_completed():
        return 0
    state.result()
    raise RuntimeError(f"the flow ended as {state}")


def _fail(line: str, code: int) -> int:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    return code


def _end(number: int, _frame: object) -> NoReturn:
    """Leave by an exception, which stops the stages; a second signal must not interrupt that."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
