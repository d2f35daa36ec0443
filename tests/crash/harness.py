"""Kill a command with SIGKILL, run it again to its end, and compare its outputs with those of an unkilled run."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

Start = Callable[[IO[str]], subprocess.Popen[Any]]
POLL_SECONDS = 0.002
EARLIER = 0.7  # if a run ends before its kill, the next attempt kills at this fraction of the time


def kill_and_resume(start: Start, moments: Sequence[float], out: Path, also: Sequence[Path] = ()) -> dict[str, Any]:
    """Run a command once without a kill, and once per moment with a kill of its whole process group.

    start: starts the command, with the given file as its output, in a session of its own.

    A moment is a fraction, between 0 and 1, of the time that an unkilled run works, that is, while ``out.partial``
    exists: before that, Python only imports, and after it, only exits. Each killed run starts from nothing and is then
    run again to its end. ``also``: other files that it writes, compared too.

    Returns ``{"seconds", "clean", "killed": [{"moment", "seconds", "left", "sha256", "different"}, ...]}``: the working
    time of the unkilled run and the SHA-256 over the names and bytes of its outputs; then for every moment the time of
    the kill, the newest file in the unfinished folder, and after the second run the SHA-256 and the names of the files
    that differ. Raises RuntimeError if a run that was not killed fails.
    """
    partial = out.with_name(f"{out.name}.partial")
    paths = (out, *also)

    def start_afresh() -> None:
        for path in (*paths, partial):
            _remove(path)

    start_afresh()
    clean_seconds, _ = _run(start, partial)
    clean, killed = file_hashes(paths), []
    for moment in moments:
        seconds, in_time = moment * clean_seconds, False
        while not in_time:  # a machine that was busy may be faster now
            start_afresh()
            seconds, in_time = _run(start, partial, seconds)
            if not in_time:
                seconds *= EARLIER
        left = _newest(partial)
        _run(start, partial)
        resumed = file_hashes(paths)
        different = sorted(name for name in clean | resumed if clean.get(name) != resumed.get(name))
        killed.append(
            {"moment": moment, "seconds": seconds, "left": left, "sha256": _total(resumed), "different": different}
        )
    return {"seconds": clean_seconds, "clean": _total(clean), "killed": killed}


def file_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 by name of every file at and under ``paths``. Raises RuntimeError when one of them does not exist."""
    hashes = {}
    for top in paths:
        if not top.exists():
            raise RuntimeError(f"{top} was not written")
        for path in [top] if top.is_file() else top.rglob("*"):
            if path.is_file():
                hashes[str(path.relative_to(top.parent))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def _total(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()


def _run(start: Start, partial: Path, kill_after: float = math.inf) -> tuple[float, bool]:
    """Run the command; returns the seconds it worked, and whether the kill at ``kill_after`` seconds hit it at work."""
    with tempfile.TemporaryFile("w+") as output:
        process = start(output)
        try:
            began = _wait(process, partial.exists)
            ended = _wait(process, lambda: not partial.exists(), began + kill_after)
            if ended < began + kill_after:
                process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        killed = process.returncode == -signal.SIGKILL
        if process.returncode != 0 and not killed:
            output.seek(0)
            raise RuntimeError(f"{process.args} ended with {process.returncode}:\n{output.read()[-2000:]}")
        return ended - began, killed and partial.exists()


def _wait(process: subprocess.Popen[Any], condition: Callable[[], bool], until: float = math.inf) -> float:
    """The time at which the process ended, the condition came true, or ``until`` passed."""
    while process.poll() is None and not condition() and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return time.monotonic()


def _newest(partial: Path) -> str:
    """The file of an unfinished folder that was written last."""
    files = [path for path in partial.rglob("*") if path.is_file()] if partial.exists() else []
    if not files:
        return "nothing"
    return str(max(files, key=lambda path: path.stat().st_mtime_ns).relative_to(partial))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
