"""`python -m flows.stack.supervisor`: supervisord, which outlives a full disk.

It writes what its programs print to files. When one could not be written it would end, and all programs with it, for it
tells that on its standard error, a file on the same disk. Here such lines are lost, until there is room again.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from supervisor import loggers, supervisord


class Log(loggers.RotatingFileHandler):
    """A file of lines."""

    def emit(self, record: Any) -> None:
        """Write a line, or lose it; a file that could not be rotated is opened again."""
        try:
            super().emit(record)
        except (OSError, ValueError):
            with suppress(OSError):
                self.stream = open(self.baseFilename, self.mode)  # noqa: SIM115 (closed by what rotates it)

    def handleError(self) -> None:
        """Lose the line."""


if __name__ == "__main__":
    loggers.RotatingFileHandler = Log
    supervisord.main()
