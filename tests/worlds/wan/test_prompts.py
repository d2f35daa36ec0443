"""Prompt files: what counts as a line, and which files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiar.errors import UserError
from hiar.worlds.wan.prompts import PromptFile


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\n\n \t\ntwo\u2028more  words\x0b\nthree".encode())
    prompts = PromptFile(path)
    assert list(prompts) == list(prompts) == ["one", "two more words", "three"]
    assert len(prompts) == 3


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "holds no prompt; write one a line"),
        (b" \n\r\n", "holds no prompt; write one a line"),
        (b"good\nb\xe4d\n", "line 2: byte 1 = 0xe4 is not UTF-8; save the file as UTF-8"),
        (None, "no such file; name a text file with one prompt a line"),
    ],
)
def test_invalid_prompt_files_are_refused_in_one_line(tmp_path: Path, content: bytes | None, line: str) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        PromptFile(path)
    assert str(error.value) == f"{path}: {line}"
