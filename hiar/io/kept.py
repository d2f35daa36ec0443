"""Results saved one by one, each as a line of JSON, so that after a kill only the rest has to be made."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hiar.errors import UserError
from hiar.io.files import json_line, writing


def read_kept(path: Path, fields: Collection[str]) -> list[dict[str, Any]]:
    """The results in a file, none if it does not exist; a last line that a kill cut off is left out.

    Raises UserError if a line is anything but a result with exactly these fields.
    """
    results = []
    with writing(path):
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            result = json.loads(line)
        except ValueError:
            result = None
        if not (isinstance(result, dict) and result.keys() == set(fields)):
            raise UserError(f"{path}: line {number} is not a kept result; move the file away or choose another --out")
        results.append(result)
    return results


@contextmanager
def keeping(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that appends a result to a file and syncs it to disk; the first call makes the file.

    Raises UserError when the file cannot be written, or another process is writing it.
    """
    with ExitStack() as stack:
        files: list[BinaryIO] = []

        def keep(result: Mapping[str, Any]) -> None:
            with writing(path):
                if not files:
                    files.append(stack.enter_context(_alone(path)))
                files[0].write(json_line(result).encode())
                files[0].flush()
                os.fsync(files[0].fileno())

        yield keep


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """A file opened for appending, locked, without a last line that a kill cut off."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another process is writing it; wait for it or choose another --out") from None
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        yield file
