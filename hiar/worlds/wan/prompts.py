"""A prompt file, read line by line: it may hold more prompts than should be in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hiar.errors import UserError
from hiar.io.text import one_line


class PromptFile:
    """The prompts of a UTF-8 file, one per line, with single spaces, without blank lines; read anew by each iteration.

    Raises UserError, before the first prompt, when the file cannot be read, is not UTF-8 or holds no prompt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._count = sum(1 for _ in self)
        if not self._count:
            raise UserError(f"{path}: holds no prompt; write one a line")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        remedy = "name a text file with one prompt a line"
        try:
            with self.path.open("rb") as file:  # as bytes: only LF, or CR LF, ends a line
                for number, line in enumerate(file, start=1):
                    prompt = one_line(self._decoded(line, number))
                    if prompt:
                        yield prompt
        except (FileNotFoundError, IsADirectoryError):
            raise UserError(f"{self.path}: no such file; {remedy}") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); {remedy}") from None

    def _decoded(self, line: bytes, number: int) -> str:
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.path}: line {number}: byte {error.start} = 0x{line[error.start]:02x} is not UTF-8; save the "
                "file as UTF-8"
            ) from None
