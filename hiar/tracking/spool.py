"""The spool: records of stages, on disk until MLflow has them.

``.hiar/spool/SERVER/`` of a project has an append-only file for each running stage, one JSON event per line, under a
lock that the kernel releases when its writer ends, however it ends. Files to log are in a folder beside it. One sender
(`hiar.tracking.sender`) sends a folder's events; what MLflow has confirmed is removed.

Events, each with a ``"time"``: ``{"run": ...}`` first, `hiar.tracking.identity.describe` and what stages add;
``{"metrics", "step"}`` points of curves; ``{"figures", "step"}`` results, of which the last counts; ``{"tags"}``;
``{"model", "aliases"}``; ``{"artifact"}``; ``{"end"}`` last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from hiar.errors import without_password

SPOOL, LOCAL = Path(".hiar", "spool"), "local"
LOCK, TROUBLE, LOG = "sender.lock", "trouble.txt", "sender.log"
CODE = Path(__file__).resolve().parents[2]


def spool_folder(project: Path) -> Path:
    """The folder of records for the server that the environment names; no password of a URI enters its name."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return project / SPOOL / LOCAL
    if urlsplit(uri).scheme not in ("http", "https"):
        uri = f"{uri} from {os.getcwd()}"  # it may be a path
    return project / SPOOL / hashlib.sha256(without_password(uri).encode()).hexdigest()[:12]


class Writer:
    """The spool file of a stage. Raises OSError when it cannot be written."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
        unnamed = self.path.with_suffix(".new")  # renamed once locked, so that no sender sees it without its lock
        self._file = os.open(unnamed, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.append({"run": run})
        unnamed.rename(self.path)

    def append(self, event: Mapping[str, Any]) -> None:
        """Append an event, with the time in milliseconds, by one write."""
        line = json.dumps({**event, "time": round(time.time() * 1000)}).encode() + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError(f"{self.path}: no space left")

    def keep(self, path: Path) -> None:
        """Add a file, by hard link if possible: it may be renamed or replaced afterwards, but not written to."""
        folder = kept(self.path)
        folder.mkdir(exist_ok=True)
        copy = folder / path.name
        copy.unlink(missing_ok=True)
        try:
            os.link(path, copy)
        except OSError:  # on another disk, or one without links
            shutil.copyfile(path, copy)
        self.append({"artifact": path.name})

    def close(self) -> None:
        os.close(self._file)


def kept(path: Path) -> Path:
    """The folder of files to log that belongs to a spool file."""
    return path.with_suffix(".files")


def waiting(folder: Path) -> list[Path]:
    """The spool files of a folder, oldest first."""
    return sorted(folder.glob("*.jsonl"))


def is_written(path: Path) -> bool:
    """Whether the stage that writes a spool file is alive."""
    try:
        file = path.open("r+b")  # NFS locks only files that are open for writing
    except FileNotFoundError:
        return False
    with file:
        return not _locked(file)


def take_lock(folder: Path) -> IO[bytes] | None:
    """The lock file that makes this process the folder's sender while it is open, or None if there is a sender."""
    file = (folder / LOCK).open("ab")
    if _locked(file):
        return file
    file.close()
    return None


def start_sender(folder: Path) -> None:
    """Start a sender unless the folder has one; it outlives this process, and ends when all is sent."""
    lock = take_lock(folder)
    if lock is None:
        return
    lock.close()
    path = os.pathsep.join(filter(None, (os.fspath(CODE), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "hiar.tracking.sender", os.fspath(folder.resolve())]
    with (folder / LOG).open("ab") as log:
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def trouble(folder: Path) -> str | None:
    """The last error of a folder's sender, if it could not send."""
    try:
        return (folder / TROUBLE).read_text(encoding="utf-8")
    except OSError:
        return None


def drain(folder: Path, seconds: float) -> None:
    """Wait until the records of ended stages are sent, at most ``seconds``, or until the sender reports an error."""
    deadline = time.monotonic() + seconds
    while any(not is_written(path) for path in waiting(folder)):
        start_sender(folder)
        if trouble(folder) is not None or time.monotonic() > deadline:
            return
        time.sleep(0.1)


def _locked(file: IO[bytes]) -> bool:
    """Lock an open file; False if another process has the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
