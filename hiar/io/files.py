"""Files that are either complete or absent: written under a temporary name, synced to the disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
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
    errno.ENOENT: "create its parent folder or choose another place",
    errno.ELOOP: "the link leads back to itself; choose another place",
    errno.EBUSY: "it is mounted or in use; choose another place",
    errno.EPIPE: "its reader has exited; start both again",
    errno.EBADF: "it is not open for writing; choose another place",
}
_REMEDY = "fix that or choose another place"  # of every other error of the system


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; it is read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> str:
    """JSON with the same bytes for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the body ends; the folder is made if missing.

    For one writer at a time: the temporary name is always the same, so the next run deletes what a killed one left.
    The file gets the mode of the umask, also if safetensors wrote it, which would make it readable by its owner alone.
    Raises UserError when it cannot be written.
    """
    temporary = temporary_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.unlink(missing_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)
            sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            remove(temporary)
            raise


def temporary_of(path: Path) -> Path:
    """The path under which a file is written before it gets its name."""
    return path.with_name(f".{path.name}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically. Raises UserError when it cannot be written."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` atomically as `json_text`."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """``value`` as indented JSON with sorted keys. Raises ValueError on NaN and infinities."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def json_line(value: Any) -> str:
    """``value`` as a line of JSON Lines, keys in the order they have. Raises ValueError on NaN and infinities."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn every error of the operating system in the body into a UserError naming the file or ``place``."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number is None:
            raise
        filename = getattr(error, "filename", None)
        path = place if filename is None or str(filename).endswith(".tmp") else filename
        raise UserError(f"{path}: {os.strerror(number).lower()}; {_REMEDIES.get(number, _REMEDY)}") from error


def followed(path: Path) -> Path:
    """The final target of a link, whether or not it exists; any other path unchanged.

    Raises OSError for a link that leads to itself.
    """
    if not path.is_symlink():
        return path
    end = Path(os.path.realpath(path))
    if end.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return end


def missing(path: Path) -> bool:
    """Whether nothing exists at a path. Raises OSError if this cannot be told, as for a link that leads to itself."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    return False


def is_mounted(path: Path) -> bool:
    """Whether a file or folder is itself a mount point, as in containers: it then cannot be renamed."""
    try:
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()]
    except OSError:  # no Linux
        return path.is_mount()
    return os.path.realpath(path) in [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), at) for at in mounts]


def check_place(folder: Path) -> None:
    """Raise UserError when no file can be created in a folder; the check leaves nothing behind."""
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        with writing(folder):
            raise OSError(error.errno, error.strerror, str(folder)) from error


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, or a folder with everything in it; do nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _errno(error: Exception) -> int | None:
    """The operating system's error number behind an exception, None if the library that raised it gives none."""
    if isinstance(error, OSError):
        return error.errno
    if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        return int(found[1])
    return None
