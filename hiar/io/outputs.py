"""Outputs that a user names: a file, a link to one, a pipe, a device, or a descriptor that a shell has opened.

A file is replaced as a whole (for a link, its target); pipes, devices and descriptors are written to.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from hiar.errors import UserError
from hiar.io.files import check_place, followed, is_mounted, missing, temporary_of, write_text, writing

STDOUT = 1
LINKS = 40  # Linux follows at most so many in a row
CRF = 16  # h264 quality, 1 to 51 (worst)

Output = Path | int  # an int: a descriptor of this process


def output_of(option: str, name: str) -> Output:
    """The output that an option's value names, after checking that it can be written; nothing is written or opened.

    ``-`` is the standard output. Raises UserError for a folder, a file whose folder is missing or not writable, a
    mounted file, a socket, a descriptor that is not open for writing, and a link that leads back to itself.
    """
    if not name:
        raise UserError(f"{option} = '': is empty; name a file, or - for the standard output")
    path = Path(name)
    number = STDOUT if name == "-" else _own_descriptor(path)
    if number is not None:
        _check_open(f"{option} = {name}", number)
        return number
    with writing(path):
        mode = _mode(path)
        if name.endswith("/") or stat.S_ISDIR(mode):
            raise UserError(f"{option} = {name}: is a folder; name a file in it")
        if stat.S_ISSOCK(mode):
            raise UserError(f"{option} = {name}: is a socket; name a file or a pipe")
        if mode and not stat.S_ISREG(mode):
            if not os.access(path, os.W_OK):
                raise UserError(f"{option} = {name}: is not writable; get permission or choose another place")
            return path
        file = followed(path)
        if is_mounted(file):
            raise UserError(f"{option} = {name}: is mounted, so it cannot be replaced; name another file")
        if missing(file.parent):
            raise UserError(f"{option} = {name}: there is no folder {file.parent}; make it or choose another place")
        with suppress(FileNotFoundError):
            os.lstat(temporary_of(file))  # its name may be too long even if the file's is not
        check_place(file.parent)
    return file


def write_output(out: Output, text: str) -> None:
    """Write text as UTF-8, atomically if to a file. Raises UserError when it cannot be written."""
    if isinstance(out, Path) and not is_stream(out):
        with writing(out):
            file = followed(out)
        write_text(file, text)
        return
    with writing(place_of(out)), opened(out) as stream:
        write_all(stream, text.encode())


def is_stream(path: Path) -> bool:
    """Whether a path is written to instead of replaced: a pipe or a device."""
    return path.exists() and not path.is_file()


def opened(out: Output) -> BinaryIO:
    """A pipe, a device or a descriptor, open for writing, unbuffered; a pipe waits for its reader."""
    # Not mode "w", which has O_CREAT: the kernel forbids that for other users' pipes in world-writable folders.
    number = os.dup(out) if isinstance(out, int) else os.open(out, os.O_WRONLY | os.O_NOCTTY)
    return os.fdopen(number, "wb", buffering=0)


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write all of ``data``: one write to an unbuffered file may take only a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    file.flush()


def is_terminal(out: Output) -> bool:
    """Whether an output is a terminal."""
    if isinstance(out, int):
        return os.isatty(out)
    if not out.is_char_device():
        return False
    with writing(out), opened(out) as device:
        return device.isatty()


def place_of(out: Output) -> Path:
    """The name of an output in messages."""
    return Path("output") if isinstance(out, int) else out


def _mode(path: Path) -> int:
    """Type and permissions of a path's final target; 0 if it does not exist yet."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return 0


def _own_descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path such as /dev/fd/63 or /dev/stdout names, None for other paths.

    It is not opened by that path: a file would be truncated, and a socket cannot be opened.
    """
    for _ in range(LINKS):
        folder = os.path.realpath(path.parent)
        if folder in (f"/proc/{os.getpid()}/fd", "/dev/fd") and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, path.readlink())
    return None


def _check_open(given: str, number: int) -> None:
    try:
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        mode = None
    if mode is None or (number == STDOUT and sys.stdout is None):  # a file that we opened has its number now
        raise UserError(f"{given}: is not open; name a file")
    if mode == os.O_RDONLY:
        raise UserError(f"{given}: is open for reading only; name a file")
