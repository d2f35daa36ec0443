"""``python -m tests.crash``: kill every stage at random moments; a table, and exit code 1 on any difference."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.commands import start

from .stages import STAGES, crash, make_workspace

ROW = "{:<8} {:>9} {:>10}  {:<44} {:<6} {}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--moments", type=int, default=5, help="kills a stage (5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (0)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # also ends the running stage
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        make_workspace(Path(folder))
        show("stage", "moment", "killed at", "last file then", "equal", "SHA-256 of all outputs")
        for stage in STAGES:
            result = crash(Path(folder), stage, arguments.moments, arguments.seed, start)
            show(stage, "none", f"({result['seconds']:.2f} s)", "", "", result["clean"])
            for run in result["killed"]:
                different += bool(run["different"])
                equal = "NO" if run["different"] else "yes"
                show("", f"{run['moment']:.0%}", f"{run['seconds']:.2f} s", run["left"][-44:], equal, run["sha256"])
                for name in run["different"]:
                    show("", "", "", f"  differs: {name}", "", "")
    print(f"{different} of {arguments.moments * len(STAGES)} killed runs left something else than the unkilled run")
    return different > 0


def show(*cells: str) -> None:
    print(ROW.format(*cells).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
