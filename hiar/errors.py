"""Errors for users: one line that says what is wrong and what to do about it."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ERROR_FILE = "HIAR_ERROR_FILE"  # the file where one of several processes leaves its line for the launcher to print
LOST = 3  # exit code of a process that ended only because another one of its job did

# torch's messages when memory is exhausted, or a size can never be allocated.
NO_MEMORY = re.compile(r"(can't|cannot) allocate memory|out of memory|size calculation overflowed", re.IGNORECASE)


class UserError(Exception):
    """A mistake that the user can fix; the command line prints it as one line and exits with code 2.

    The message names the file or option, the field, the value found, and the remedy, for example
    ``params.yaml: teacher.steps = -3: should be at least 1; set a positive number of steps``.
    """


class InUse(UserError):
    """Something that another process is using at the moment; the caller may wait for it."""


class RunFailed(Exception):
    """A run that failed through no mistake of the user; the command line prints it as one line.

    exit_code: 1, or ``LOST`` when another process is the cause.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def say(message: str) -> None:
    """Print an error as one line on standard error, or leave it for the process that prints it for several."""
    line = " ".join(message.split())
    if path := os.environ.get(ERROR_FILE):
        Path(path).write_text(line, encoding="utf-8", errors="backslashreplace")
    else:
        print(f"error: {line}", file=sys.stderr)  # noqa: T201


def without_password(text: str) -> str:
    """The text without the user names and passwords in its URLs."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def memory_line(error: Exception) -> str | None:
    """The line for an out-of-memory error of numpy or torch; None for any other error."""
    if not (isinstance(error, MemoryError) or NO_MEMORY.search(str(error))):
        return None
    asked = re.search(r"allocate ([\d.]+ ?(bytes|[KMGTPE]iB))", str(error))
    size = f" for {asked[1]} at once" if asked else ""
    return f"memory: not enough{size}; lower batches or sizes, or ask for less at a time"


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy for a name that is not ``known``: the closest known one, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names) or 'none'}"


class BrokenRule(ValueError):
    """A value that breaks a rule, with the parts of its error line."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(f"{field} = {value!r}: {remedy}")
        self.field, self.value, self.remedy = field, value, remedy


def require(condition: bool, field: str, value: object, remedy: str) -> None:
    """Raise BrokenRule unless ``condition`` holds; for validators of sections."""
    if not condition:
        raise BrokenRule(field, value, remedy)
