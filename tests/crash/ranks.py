"""``python -m tests.crash.ranks``: kill processes of a pipeline at random moments; print what is left, and when."""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hiar.io.video import read_mp4

PROMISED = 60.0  # seconds, even on a busy machine; much less than the silence that ends a run
FRAMES = 6000  # enough that a kill always hits the walk


@dataclass(frozen=True)
class Broken:
    """The outcome of a run in which one process was stopped."""

    seconds: float  # from the signal until the command had ended
    code: int
    errors: list[str]  # lines on standard error about it
    frames: int  # playable frames of the unfinished video
    survivors: list[int]  # processes that are still alive


def break_a_rank(
    checkpoint: Path, folder: Path, environment: Mapping[str, str], rank: int, ranks: int, *, delay: float = 0.0,
    number: int = signal.SIGKILL, stall_seconds: float = 600.0, frames: int = FRAMES, walked: bool = False,
) -> Broken:  # fmt: skip
    """Signal ``rank`` (-1: the launcher) of a running `hiar sample`, ``delay`` seconds after its first blocks.

    walked: after its last blocks instead, while the decoding process writes the video.
    """
    command = [
        *(sys.executable, "-m", "hiar", "sample", "--checkpoint", checkpoint, "--prompt", "a red disc moves left"),
        *("--frames", frames, "--processes", ranks, "--stall-seconds", stall_seconds, "--out", folder / "out"),
    ]
    partial = folder / "out.partial"
    unfinished, video = partial / "unfinished-0000.mp4", partial / "0000.mp4"

    def has_begun() -> bool:
        if walked:
            return any((partial / ".latents").glob("*.safetensors"))
        return unfinished.exists() and unfinished.stat().st_size > 0

    with tempfile.TemporaryFile("w+") as log:
        run = subprocess.Popen(
            [str(word) for word in command], env=dict(environment), stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        wait_until(has_begun, run)
        time.sleep(delay)
        processes = {_rank_of(pid): pid for pid in _children(run.pid)}
        os.kill(processes[rank] if rank >= 0 else run.pid, number)
        began = time.monotonic()
        code = run.wait(timeout=600 + stall_seconds)
        seconds = time.monotonic() - began
        if rank < 0:
            wait_until(lambda: not _alive(processes.values()))
        log.seek(0)
        errors = [line for line in log.read().splitlines() if not line.startswith(("walk: ", "sample: "))]
    playable = len(read_mp4(unfinished if unfinished.exists() else video))
    return Broken(seconds, code, errors, playable, _alive(processes.values()))


def wait_until(ready: Callable[[], bool], run: subprocess.Popen[bytes] | None = None, seconds: float = 600.0) -> None:
    """Wait until ``ready()``. Raises RuntimeError if the process ``run`` ends first, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not ready():
        if (run is not None and run.poll() is not None) or time.monotonic() > deadline:
            raise RuntimeError("the command ended, or went on for too long, before it was to be stopped")
        time.sleep(0.01)


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _rank_of(pid: int) -> int:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(entry.removeprefix(b"RANK=")) for entry in environment if entry.startswith(b"RANK="))


def _alive(pids: object) -> list[int]:
    """The processes that have not ended; a zombie has ended."""

    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "X"

    return [pid for pid in pids if state(pid) not in "XZ"]  # type: ignore[attr-defined]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.ranks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2, help="processes that denoise; one more decodes (2)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from commands import environment
    from students import save_student

    moments = random.Random(arguments.seed)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "student"
        save_student(checkpoint)
        print("round  killed  after s  ended after s  code  playable frames  line")
        for number in range(arguments.rounds):
            rank, delay = moments.randrange(arguments.ranks + 1), moments.uniform(0, 3)
            place = Path(folder) / str(number)
            place.mkdir()
            broken = break_a_rank(checkpoint, place, environment(), rank, arguments.ranks, delay=delay)
            good = broken.seconds < PROMISED and broken.code == 1 and len(broken.errors) == 1 and broken.frames > 0
            bad += not (good and not broken.survivors)
            row = (
                f"{number:>5}  {rank:>6}  {delay:>7.2f}  {broken.seconds:>13.2f}  {broken.code:>4}  {broken.frames:>15}"
            )
            print(f"{row}  {' | '.join(broken.errors)}", flush=True)
    print(f"{bad} of {arguments.rounds} rounds did not end as promised")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
