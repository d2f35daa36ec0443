"""One process at a time in a folder that several share, such as a cache."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hiar.io.files import writing
from hiar.io.progress import tell

LOCK = ".lock"


@contextmanager
def locked(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """Wait until no other process is in the folder, which is made when missing; that one waits is told.

    lock: the file's name; those of another name are waited for on their own. The kernel lets go of the lock when its
    process dies. The lock file stays: deleting it would let two processes in. Raises UserError when the folder cannot
    be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / lock).open("a")  # open for writing: network file systems lock no other
    with file:
        with writing(folder):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"{folder}: another process is writing; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
