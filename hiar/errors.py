"""The one exception a user may cause: a line that says what is wrong and what to do about it."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ERROR_FILE = "HIAR_ERROR_FILE"  # where a process that is one of several writes its line, for the one that tells it
LOST = 3  # exit code of a process that only lost another one of its job

# How torch says that there is no memory, or that there can be none of such a size.
NO_MEMORY = re.compile(r"(can't|cannot) allocate memory|out of memory|size calculation overflowed", re.IGNORECASE)


class UserError(Exception):
    """A mistake the user can mend; the command line prints it as one line and exits with code 2.

    The message names the file or option, the field, the value found, and the remedy, for example
    ``params.yaml: teacher.steps = -3: should be at least 1; set a positive number of steps``.
    """


class InUse(UserError):
    """What is wanted is another process's at the moment; one may wait for it."""


class RunFailed(Exception):
    """A run that broke down through no mistake of the user; the command line prints it as one line.

    exit_code: 1, or ``LOST`` when another process is the cause.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def say(message: str) -> None:
    """Tell an error in one line: on the standard error, or to the process that tells it for several."""
    line = " ".join(message.split())
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(line, encoding="utf-8", errors="backslashreplace")
    else:
        print(f"error: {line}", file=sys.stderr)  # noqa: T201


def without_password(text: str) -> str:
    """A line for people, without the names and passwords that addresses in it hold."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def memory_line(error: Exception) -> str | None:
    """The line for an error of numpy or torch that means that memory does not suffice; None for any other."""
    if not (isinstance(error, MemoryError) or NO_MEMORY.search(str(error))):
        return None
    asked = re.search(r"allocate ([\d.]+ ?(bytes|[KMGTPE]iB))", str(error))
    size = f" for {asked[1]} at once" if asked else ""
    return f"memory: does not suffice{size}; lower batches or sizes, or ask for less at a time"


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy for a name that is not ``known``: the closest one that is, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names) or 'none'}"


class BrokenRule(ValueError):
    """A broken rule between fields, with what its error line needs."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(f"{field} = {value!r}: {remedy}")
        self.field, self.value, self.remedy = field, value, remedy


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Raise BrokenRule unless ``condition`` holds; for the validators of a section."""
    if not condition:
        raise BrokenRule(field, value, remedy)
