"""Text that people write: prompts and captions, one per line."""

from __future__ import annotations

import re


def split_lines(text: str) -> list[str]:
    """The lines of a text file, ended by LF or CR LF; Unicode's other line breaks are part of a line."""
    lines = re.split(r"\r?\n", text)
    return lines[:-1] if lines[-1] == "" else lines


def one_line(prompt: str) -> str:
    """A prompt with each run of white space replaced by one space, so that it is one line of any file."""
    return " ".join(prompt.split())
