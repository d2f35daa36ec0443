"""``python -m tests.chaos``: kill parts of the stack while an experiment runs; a table, and exit code 1 on any loss."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from .lab import DATABASES, PARTS, Lab

ROW = "{:>5} {:<11} {:>9} {:>10} {:>10} {:<10} {:<6} {:<10} {:<10} {}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="round to begin with, in another sitting (0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the parts and the moments (0)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what may be killed")
    parser.add_argument("--database", choices=DATABASES, default="sqlite", help="of the stack (sqlite)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    draw = random.Random(arguments.seed)
    parts = [part for _ in range(arguments.rounds) for part in draw.sample(arguments.parts, len(arguments.parts))]
    rounds = [(number, parts[number], draw.uniform(0.1, 0.9)) for number in range(arguments.rounds)]
    rounds = rounds[arguments.first :]
    different = 0
    with tempfile.TemporaryDirectory(prefix="hiar-chaos-") as folder:
        Path(folder).chmod(0o711)  # under root, PostgreSQL runs as another user
        lab = Lab(Path(folder) / "project", arguments.database)
        try:
            lab.share()
            print(f"healthy after {lab.start():.0f} s", flush=True)
            clean, whole = lab.undisturbed()
            if problems := [*lab.points_amiss(), *lab.store_amiss().splitlines()]:
                sys.exit("\n".join(problems))
            stored = f"{lab.stored('hiar/dvc')} objects stored, {lab.versions()} students registered"
            print(f"undisturbed: {whole:.0f} s, {len(clean)} outputs, {stored}", flush=True)
            show("round", "killed", "at", "again", "complete", "state", "equal", "points", "store", "left behind")
            for number, part, moment in rounds:
                began = time.monotonic()
                run = lab.fire()
                lab.wait_for_work(part, began + moment * whole)
                at = time.monotonic()
                orphans = lab.kill(part)
                again = lab.running_again(run, part, at)
                state = lab.end_of(run)
                equal = lab.outputs() == clean
                seconds = (f"{at - began:.0f} s", f"{again:.0f} s", f"{time.monotonic() - began:.0f} s")
                points, store = lab.points_amiss(), lab.store_amiss()
                different += state != "COMPLETED" or not equal or bool(points or store or orphans)
                verdicts = ("yes" if equal else "NO", "amiss" if points else "each once", "amiss" if store else "whole")
                show(str(number), part, *seconds, state, *verdicts, str(orphans or "nothing"))
                for line in filter(None, (*points, *store.splitlines())):
                    print(f"      {line}", flush=True)
        finally:
            lab.stop()
    print(f"{different} of {len(rounds)} rounds ended otherwise than the undisturbed run")
    return different > 0


def show(*cells: str) -> None:
    print(ROW.format(*cells).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
