"""`python -m flows [EXPERIMENT] [--force]`: the experiment flow in this process, which signals end without an orphan.

The exit code is that of the failed stage, whose error is the last line; `hiar run` starts this.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import signal
import sys
from typing import NoReturn

from flows.pipeline import StageFailure

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def main() -> int:
    """Run the flow and return the exit code."""
    for number in SIGNALS:
        signal.signal(number, _end)
    if sys.platform == "linux":  # the death of `hiar run`, by SIGKILL too, ends this process as SIGTERM does
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    parser = argparse.ArgumentParser(prog="python -m flows")
    parser.add_argument("experiment", nargs="?")
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args()

    from flows.experiment import experiment

    state = experiment(name=options.experiment, force=options.force, return_state=True)
    logging.getLogger("prefect").setLevel(logging.WARNING)  # its farewell would come after our last line
    if state.is_completed():
        return 0
    try:
        state.result()
    except StageFailure as failure:
        print(f"error: {failure}", file=sys.stderr)
        return failure.code
    raise RuntimeError(f"the flow ended as {state}")


def _end(number: int, _frame: object) -> NoReturn:
    """Leave by an exception, which stops the stages; a second signal must not interrupt that."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
