"""Files that are either whole or absent: written beside, synced to the disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiar.errors import UserError

_REMEDIES = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some of your quota and run again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) and run again",
    errno.EACCES: "get permission or choose another place",
    errno.EPERM: "get permission or choose another place",
    errno.EROFS: "make it writable or choose another place",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.EEXIST: "a file has this name; choose another",
    errno.EISDIR: "a folder has this name; choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the body ends; the folder is made when missing.

    For one writer at a time: the temporary name is always the same, so that a killed run leaves nothing that its
    repetition does not clear away. Raises UserError when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            remove(temporary)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically. Raises UserError when it cannot be written."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as indented JSON with sorted keys. Raises ValueError on NaN and infinities."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn a full disk, missing permission and the like in the body into a UserError naming file or ``place``."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number not in _REMEDIES:
            raise
        filename = getattr(error, "filename", None)
        path = place if filename is None or str(filename).endswith(".tmp") else filename
        raise UserError(f"{path}: {os.strerror(number).lower()}; {_REMEDIES[number]}") from error


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder with all it holds; nothing happens when there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _errno(error: Exception) -> int | None:
    """The operating system's error number behind an exception, as far as the libraries we write with tell it."""
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return int(found[1])
    return None
