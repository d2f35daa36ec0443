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
    """Hold a lock in a folder, which is made if missing; wait, with a line that says so, if another process has it.

    lock: the lock file's name; locks with different names are independent. The kernel releases the lock when its
    process dies. The lock file stays: deleting it would let two processes in. Raises UserError when the folder cannot
    be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / lock).open("a")  # network file systems lock only files that are open for writing
    with file:
        with writing(folder):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell(f"{folder}: another process is writing; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
