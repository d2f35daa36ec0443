"""`python -m flows.stack.supervisor`: supervisord, made to survive a full disk.

It writes its programs' output to files. When that fails, supervisord reports it on its standard error, a file on the
same disk, and so ends with all its programs. Here such lines are lost until there is free space again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from supervisor import loggers, supervisord


class Log(loggers.RotatingFileHandler):
    """A log file of supervisord that drops lines which cannot be written."""

    def emit(self, record: Any) -> None:
        """Write a line, or drop it; a file that could not be rotated is reopened."""
        try:
            super().emit(record)
        except (OSError, ValueError):
            with suppress(OSError):
                self.stream = open(self.baseFilename, self.mode)  # noqa: SIM115 (closed by what rotates it)

    def handleError(self) -> None:
        """Drop the line."""


if __name__ == "__main__":
    loggers.RotatingFileHandler = Log
    supervisord.main()
