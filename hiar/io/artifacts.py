"""Artifact folders: filled aside, resumable, renamed when complete, with a manifest that is checked on reading.

A folder is filled as ``<folder>.partial``, which survives a crash; the next run with the same key resumes from it.
Names in it that start with a dot are scratch (the key, temporary files, the state to resume from) and are removed
before the folder gets its name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.io.files import (
    canonical,
    check_place,
    followed,
    is_mounted,
    missing,
    remove,
    sync,
    write_text,
    writing,
)
from hiar.io.manifests import (
    MANIFEST,
    Facts,
    code_version,
    content_hash,
    facts,
    load_manifest,
    read_manifest,
    write_manifest,
)
from hiar.io.progress import tell

__all__ = [
    "MANIFEST",
    "Facts",
    "check_folder",
    "code_version",
    "content_hash",
    "facts",
    "is_made",
    "key_hash",
    "partial_of",
    "read_manifest",
    "unfinished",
    "write_manifest",
]

_KEY = ".key.json"


@contextmanager
def unfinished(folder: Path, key: Mapping[str, Any], replaces: str | None = None) -> Iterator[Path]:
    """The folder ``<folder>.partial`` to write in, which becomes ``folder`` when the body ends without an exception.

    What an interrupted run left there is kept if its ``key`` (JSON: the settings that decide the content) was equal,
    so that the body can resume; otherwise it is set aside as ``<folder>.aside-N.partial``, with a line that says so,
    and the folder starts empty. An exception or a kill leaves it in place, if anything was written by then.
    ``folder`` keeps its old content until the new content is complete and on disk; with ``replaces``, the old content
    must be an artifact of this kind. If ``folder`` is a link, its target is replaced.

    Raises UserError when another process of this machine is writing the folder; when ``folder`` exists and is not an
    artifact, or holds files that are not in its manifest; and when something cannot be written (also in the body): no
    space, no permission, read-only.
    """
    with writing(folder):
        folder = followed(folder)
        _check_replaceable(folder, replaces)  # first: a path without a name has no partial_of
        if replaces is not None and (folder / MANIFEST).exists():
            tell(f"{folder}: what is there is replaced when the new artifact is complete")
        partial = partial_of(folder)
        partial.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with _locked(partial):
                _recover(folder)
                if _start(partial, canonical(key)):
                    try:
                        yield partial
                    except BaseException:
                        with suppress(OSError):  # the first exception is the one to report
                            if os.listdir(partial) == [_KEY]:
                                remove(partial)
                        raise
                    _finish(partial, folder)
                    return


def key_hash(key: Mapping[str, Any]) -> str:
    """SHA-256 of an artifact's key, for its manifest (``key``); see `is_made`."""
    return hashlib.sha256(canonical(key).encode()).hexdigest()


def is_made(folder: Path, kind: str, key: Mapping[str, Any]) -> bool:
    """Whether ``folder`` is an intact artifact of this kind, made under this ``key``, as its manifest says."""
    try:
        return read_manifest(folder, kind).get("key") == key_hash(key)
    except UserError:
        return False


def partial_of(folder: Path) -> Path:
    """The path under which ``folder`` is filled; see `unfinished`."""
    folder = followed(folder)
    return folder.with_name(f"{folder.name}.partial")


def check_folder(option: str, folder: Path, kind: str) -> None:
    """Raise UserError if no artifact of this kind can be written to an option's value; called before any work."""
    if folder == Path("-"):
        raise UserError(f"{option} = -: a folder cannot be written to the standard output; name one")
    with writing(folder):
        end = followed(folder)
        _check_replaceable(end, kind)
        if missing(end.parent):
            raise UserError(f"{option} = {folder}: there is no folder {end.parent}; make it or choose another place")
        for place in (end, _aside(end)):  # the second name may be too long where the first is not
            missing(place)
        check_place(end.parent)


def _check_replaceable(folder: Path, kind: str | None) -> None:
    """Refuse to replace anything but an artifact: a finished folder is replaced with everything in it."""
    if folder.name in ("", "..") or os.path.realpath(folder) == os.getcwd():
        raise UserError(f"{folder}: would be replaced as a whole; choose a folder below it")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    if is_mounted(folder):
        raise UserError(f"{folder}: is mounted, so it cannot be replaced as a whole; choose a folder below it")
    if not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder}: holds files but no {MANIFEST}, so it is not an artifact to replace; choose a new folder"
        )
    manifest = load_manifest(folder)
    if kind is not None and manifest["kind"] != kind:
        raise UserError(f"{folder}: holds an artifact of kind '{manifest['kind']}', not '{kind}'; choose a new folder")
    for path in _entries(folder):
        if str(path.relative_to(folder)) not in (*manifest["files"], MANIFEST):
            raise UserError(
                f"{path}: does not belong to the {manifest['kind']} in {folder} and would be deleted with it; "
                "move it away or choose a new folder"
            )


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder except folders; links are not followed."""
    for parent, folders, files in os.walk(folder):
        for name in (*files, *folders):
            path = Path(parent, name)
            if name in files or path.is_symlink():
                yield path


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder, which is made if missing; the kernel releases it when the process dies.

    The lock is on the folder itself: no lock file can be left behind, and it stays held through the rename. On network
    file systems it may not reach other machines.
    """
    while True:
        partial.mkdir(exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{partial}: another process is writing it; wait for it or stop it") from None
            if _is_open_as(partial, descriptor):
                yield
                return
            # else its owner renamed it between our open and our lock
        finally:
            os.close(descriptor)


def _is_open_as(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _recover(folder: Path) -> None:
    """Clean up after a kill in the middle of ``_finish``: restore the folder that was set aside, or delete it."""
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        os.rename(aside, folder)
    remove(aside)


def _start(partial: Path, key: str) -> bool:
    """Prepare a locked folder for work under ``key``; False if it was set aside, so that a new one is needed.

    Only scratch is deleted: temporary files and, if the key differs and there is no work to set aside, everything else.
    """
    path = partial / _KEY
    # ours are called ".NAME.tmp"; safetensors, and so save_pretrained, writes to ".tmpXXXXXX" first
    for debris in [p for p in partial.rglob(".*") if p.name.startswith(".tmp") or p.name.endswith(".tmp")]:
        remove(debris)
    old = path.read_text(encoding="utf-8") if path.exists() else None
    if old == key:
        return True
    if any(file.is_file() and not file.name.startswith(".") for file in partial.rglob("*")):
        _set_aside(partial, old, key)
        return False
    for entry in list(partial.iterdir()):
        remove(entry)
    write_text(path, key)
    return True


def _set_aside(partial: Path, old: str | None, new: str) -> None:
    """Rename unfinished work that cannot be resumed, and print the new name and the reason."""
    stem = partial.name.removesuffix(".partial")
    names = (partial.with_name(f"{stem}.aside-{number}.partial") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    os.rename(partial, aside)
    changed = _differences(json.loads(old), json.loads(new)) if old else ["unknown"]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    tell(f"{partial}: was started with other settings ({', '.join(changed[:3])}{more}); it is kept as {aside}")


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The dotted names of the fields that differ between two JSON values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [name]
    found = []
    for key in sorted(old.keys() | new.keys()):
        found += _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    return found


def _finish(partial: Path, folder: Path) -> None:
    """Sync everything and give the folder its name; at any moment it or the one set aside is complete.

    Files get the mode of the umask: safetensors, and so save_pretrained, makes them readable by their owner alone.
    """
    mode = (partial / _KEY).stat().st_mode
    remove(partial / _KEY)  # first: a folder that has lost its scratch must not be resumed from
    for scratch in list(partial.rglob(".*")):
        remove(scratch)
    for path in partial.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
        sync(path)
    sync(partial)
    aside = _aside(folder)
    if folder.exists():
        os.rename(folder, aside)
    os.rename(partial, folder)
    sync(folder.parent)
    remove(aside)


def _aside(folder: Path) -> Path:
    """The name of a folder while it is replaced, with the suffix that git ignores."""
    return folder.with_name(f"{folder.name}.old.partial")
