"""Outputs that are written to and not replaced: pipes, descriptors, and files that accept partial writes."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from hiar.errors import UserError
from hiar.io.outputs import is_stream, is_terminal, opened, output_of, write_all, write_output


class Slow(io.RawIOBase):
    """A file that accepts three bytes per write."""

    def __init__(self) -> None:
        self.taken = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data[:3])
        self.taken += part
        return len(part)


def test_all_is_written_in_spite_of_partial_writes() -> None:
    slow = Slow()
    write_all(slow, b"ten bytes.")
    assert slow.taken == b"ten bytes."


def test_a_descriptor_stays_open_and_is_written_at_once() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    target = output_of("--out", f"/dev/fd/{writer}")
    assert target == writer
    for text in ("one", "zwölf"):
        write_output(target, text)
        assert os.read(reader, 99).decode() == text
    with opened(target) as stream:
        stream.write(b"more")
        assert os.read(reader, 99) == b"more"  # before it is closed
    os.close(writer)
    os.close(reader)


def test_a_closed_standard_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a shell has closed it, the next file that Python opens gets its number. Other descriptors remain valid."""
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdout", None)
    for name in ("-", "/dev/fd/1"):
        with pytest.raises(UserError, match=f"--out = {name}: is not open; name a file"):
            output_of("--out", name)
    assert output_of("--out", f"/dev/fd/{writer}") == writer
    os.close(writer)
    os.close(reader)


def test_links_to_a_descriptor_are_followed(tmp_path: Path) -> None:
    """Also links to links, and relative ones; in other folders a number is a file's name."""
    reader, writer = os.pipe()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "first").symlink_to(f"/proc/self/fd/{writer}")
    (tmp_path / "second").symlink_to("folder/first")
    (tmp_path / "third").symlink_to("second")
    assert output_of("--out", os.fspath(tmp_path / "third")) == writer
    assert output_of("--out", os.fspath(tmp_path / str(writer))) == tmp_path / str(writer)
    os.close(writer)
    os.close(reader)


def test_pipes_are_streams_and_terminals_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    assert [is_stream(tmp_path / name) for name in ("file", "pipe", "nothing yet")] == [False, True, False]
    reader, terminal = os.openpty()
    outputs = (Path(os.ttyname(terminal)), terminal, Path(os.devnull), tmp_path / "pipe", tmp_path / "nothing yet")
    assert [is_terminal(one) for one in outputs] == [True, True, False, False, False]
    os.close(terminal)
    os.close(reader)
