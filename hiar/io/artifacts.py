"""Artifact folders: filled aside, resumable, renamed when whole, described by a manifest that is checked on reading.

A folder is filled as ``<folder>.partial``, which survives a crash and is taken up again by the next run with the same
key. In it, names that start with a dot are scratch (the key, temporary files, the state to resume from): they are gone
from the finished folder. Manifests are byte-deterministic: no times, no absolute paths.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.io.files import atomic_file, remove, sync, write_json, write_text, writing
from hiar.io.progress import tell

__all__ = [
    "MANIFEST",
    "atomic_file",
    "code_version",
    "content_hash",
    "package_hash",
    "read_manifest",
    "unfinished",
    "write_json",
    "write_manifest",
    "write_text",
]

MANIFEST = "manifest.json"
_KEY = ".key.json"


@contextmanager
def unfinished(folder: Path, key: Mapping[str, Any], replaces: str | None = None) -> Iterator[Path]:
    """The folder ``<folder>.partial`` to write in, which becomes ``folder`` when the body ends without an exception.

    What an interrupted run left there is kept when it ran with an equal ``key`` (JSON: the settings that decide the
    content), so that the body can resume; else it is set aside as ``<folder>.aside-N.partial``, which is told, and the
    folder starts out empty. An exception or a kill leaves it in place.
    ``folder`` keeps its old content until the new one is whole and on disk; with ``replaces``, that must be an artifact
    of this kind.

    Raises UserError when another process of this machine is writing the folder; when ``folder`` exists and is no
    artifact; and when something cannot be written (also in the body): no space, no permission, read-only.
    """
    with writing(folder):
        _check_replaceable(folder, replaces)
        partial = folder.with_name(f"{folder.name}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with _locked(partial):
                _recover(folder)
                if _start(partial, _canonical(key)):
                    yield partial
                    _finish(partial, folder)
                    return


def write_manifest(folder: Path, kind: str, *, parents: Mapping[str, Path] | None = None, **facts: Any) -> None:
    """Describe ``folder`` in its ``manifest.json``; to be called when everything else is in it.

    It holds ``kind``, the ``facts`` (JSON values), the ``code`` (commit, and whether the package differed from it), the
    content hashes of the ``parents`` (artifact folders by name), and size and SHA-256 of every file.
    """
    manifest = {
        "kind": kind,
        "code": code_version(),
        "parents": {name: content_hash(parent) for name, parent in (parents or {}).items()},
        "files": {str(path.relative_to(folder)): _describe(path) for path in _content(folder)},
    }
    if taken := manifest.keys() & facts.keys():
        raise ValueError(f"facts of a manifest cannot be called {', '.join(sorted(taken))}")
    write_json(folder / MANIFEST, manifest | facts)


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of an artifact folder, after checking its kind and the size and SHA-256 of every file in it.

    Raises UserError naming the file that is missing, truncated or altered.
    """
    manifest = _load_manifest(folder)
    if manifest["kind"] != kind:
        raise UserError(
            f"{folder / MANIFEST}: kind = {manifest['kind']!r}: should be {kind!r}; name a folder of that kind"
        )
    for name, expected in manifest["files"].items():
        _check_file(folder / name, expected)
    return manifest


def content_hash(folder: Path) -> str:
    """SHA-256 over the names, sizes and hashes of the files in the manifest of ``folder``; no fact or commit enters."""
    return hashlib.sha256(_canonical(_load_manifest(folder)["files"]).encode()).hexdigest()


@functools.cache
def code_version() -> dict[str, Any]:
    """``{"commit", "dirty"}`` of the git checkout that holds this package; the commit is "unknown" outside of one.

    Only the package's own files count as dirty: metrics and lock files change in every run.
    """
    package = Path(__file__).resolve().parent.parent
    if not _git(package, "ls-files", "--", "errors.py"):  # installed, maybe in an environment inside some checkout
        return {"commit": "unknown", "dirty": False}
    return {
        "commit": _git(package, "rev-parse", "HEAD"),
        "dirty": bool(_git(package, "status", "--porcelain", "--", ".")),
    }


@functools.cache
def package_hash(parts: tuple[str, ...] = ("",)) -> str:
    """SHA-256 over the Python files of the package, or of some of its modules and rooms, such as ``models``."""
    package = Path(__file__).resolve().parent.parent
    files = {file for part in parts for file in [package / part, *(package / part).rglob("*.py")] if file.is_file()}
    digests = (hashlib.sha256(file.read_bytes()).digest() for file in sorted(files))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _git(folder: Path, *arguments: str) -> str:
    """The output of a git command, or nothing where there is no git or no checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # set inside hooks
    command = ["git", *arguments]
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=9
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def _check_replaceable(folder: Path, kind: str | None) -> None:
    """Refuse to replace what is not an artifact: a finished folder is swapped whole, with everything in it."""
    if folder.name in ("", "..") or folder.resolve() == Path.cwd():
        raise UserError(f"{folder}: would be replaced as a whole; choose a folder below it")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder}: holds files but no {MANIFEST}, so it is no artifact to replace; choose a new folder"
        )
    if kind is not None and (folder / MANIFEST).is_file() and (found := _load_manifest(folder)["kind"]) != kind:
        raise UserError(f"{folder}: holds an artifact of kind '{found}', not '{kind}'; choose a new folder")


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the only lock on a folder, which is made when missing; the kernel lets go of it when the process dies.

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
    """Finish what a kill in the middle of ``_finish`` left: bring back the folder that was set aside, or drop it."""
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        os.rename(aside, folder)
    remove(aside)


def _start(partial: Path, key: str) -> bool:
    """Make a locked folder ready for work under ``key``; False when it was set aside, so that a new one is needed.

    Temporary files are cleared. Nothing that took work is deleted: that is, no file but scratch, whose names start with
    a dot.
    """
    path = partial / _KEY
    # ours are called ".NAME.tmp"; safetensors, and with it save_pretrained, writes through ".tmpXXXXXX"
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
    """Give unfinished work that cannot be gone on with another name, and tell which and why."""
    stem = partial.name.removesuffix(".partial")
    names = (partial.with_name(f"{stem}.aside-{number}.partial") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    os.rename(partial, aside)
    changed = _differences(json.loads(old), json.loads(new)) if old else ["unknown"]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    tell(f"{partial}: was begun with other settings ({', '.join(changed[:3])}{more}); it is kept as {aside}")


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The dotted names of what differs between two JSON values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [name]
    found = []
    for key in sorted(old.keys() | new.keys()):
        found += _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    return found


def _finish(partial: Path, folder: Path) -> None:
    """Sync everything and give the folder its name; at any moment it or the one set aside is whole."""
    remove(partial / _KEY)  # first: what has lost its scratch must not be resumed from
    for scratch in list(partial.rglob(".*")):
        remove(scratch)
    for path in (partial, *partial.rglob("*")):
        sync(path)
    aside = _aside(folder)
    if folder.exists():
        os.rename(folder, aside)
    os.rename(partial, folder)
    sync(folder.parent)
    remove(aside)


def _aside(folder: Path) -> Path:
    """Where a folder waits while it is replaced; the name ends as the ignored ones do."""
    return folder.with_name(f"{folder.name}.old.partial")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _content(folder: Path) -> list[Path]:
    """The files of an artifact in a fixed order: no manifest, no scratch."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": path.stat().st_size}


def _load_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    remedy = "run the stage that makes it, or name another folder"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"].values()
        if not isinstance(manifest["kind"], str) or not all({"sha256", "size"} <= file.keys() for file in files):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file, so the folder is missing or unfinished; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is not a manifest; delete the folder and {remedy}") from None
    return manifest


def _check_file(path: Path, expected: Mapping[str, Any]) -> None:
    remedy = f"delete {path.parent} and run the stage that makes it again"
    try:
        size = path.stat().st_size
        if size != expected["size"]:
            raise UserError(f"{path}: size = {size} bytes: should be {expected['size']}; {remedy}")
        if _describe(path) != expected:
            raise UserError(f"{path}: is not what its manifest says (SHA-256 differs); {remedy}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
