"""Locks as NFS grants them: exclusive ones on files open for writing, shared ones on files open for reading."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import pytest

from flows.devices import take_devices
from hiar.io.kept import keeping
from hiar.io.locks import locked
from hiar.tracking.spool import Writer, is_written, take_lock
from hiar.vbench.clips import clip_folder
from hiar.vbench.records import open_records
from hiar.workspace import sole_use


@pytest.fixture(autouse=True)
def nfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Refuse what NFS refuses (flock(2)); folders it locks on this machine alone, however they are open."""
    grant = fcntl.flock

    def flock(file: int | IO[Any], operation: int) -> None:
        number = file if isinstance(file, int) else file.fileno()
        mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        wrong = os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY
        if mode == wrong and not stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        grant(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setenv("HIAR_DEVICE_LOCKS", str(tmp_path / "devices"))


def test_a_spool_on_a_network_disk_tells_whether_its_stage_is_alive(tmp_path: Path) -> None:
    writer = Writer(tmp_path, {})
    assert is_written(writer.path)
    before = writer.path.read_bytes()
    writer.close()
    assert not is_written(writer.path)
    assert writer.path.read_bytes() == before != b""
    lock = take_lock(tmp_path)
    assert lock is not None and take_lock(tmp_path) is None
    lock.close()


@pytest.mark.parametrize(
    "hold",
    [
        lambda folder: clip_folder(folder / "clips"),
        lambda folder: open_records(folder / "records", "scene", {}),
        lambda folder: sole_use(folder, None),
        lambda folder: take_devices(1),
        lambda folder: locked(folder / "cache"),
    ],
    ids=["clips", "records", "workspace", "devices", "cache"],
)
def test_a_lock_is_granted_on_a_network_disk(
    hold: Callable[[Path], AbstractContextManager[object]], tmp_path: Path
) -> None:
    (tmp_path / ".dvc").mkdir()
    with hold(tmp_path):
        pass


def test_results_are_kept_on_a_network_disk(tmp_path: Path) -> None:
    with keeping(tmp_path / "kept.jsonl") as keep:
        keep({"one": 1})
    assert (tmp_path / "kept.jsonl").read_text() == '{"one": 1}\n'
