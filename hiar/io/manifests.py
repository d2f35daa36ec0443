"""The ``manifest.json`` of an artifact folder: written here, and checked on reading, whoever wrote it.

Manifests are byte-deterministic: no times, no absolute paths.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hiar.errors import UserError
from hiar.io.files import canonical, file_hash, write_json
from hiar.io.fingerprints import cache_folder, hashes
from hiar.parameters import explain

MANIFEST = "manifest.json"
_REMEDY = "run the stage that makes it again, or name another folder"
LARGE = 2**28  # bytes from which a file is hashed once, and again only when its size or time changes


class Facts(BaseModel):
    """Some facts of a manifest, with their types; the manifest may have others."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


Known = TypeVar("Known", bound=Facts)


def facts(folder: Path, manifest: Any, known: type[Known]) -> Known:
    """Facts of the manifest of ``folder``, validated, as anybody may have written it.

    Raises UserError naming the fact that is missing or invalid.
    """
    try:
        return known.model_validate(manifest)
    except ValidationError as error:
        raise UserError(
            f"{folder / MANIFEST}: {explain(error, known)}; run the stage that makes it, or name another folder"
        ) from None


def write_manifest(folder: Path, kind: str, *, parents: Mapping[str, str] | None = None, **facts: Any) -> None:
    """Write the ``manifest.json`` of ``folder``; call it when everything else is in the folder.

    It holds ``kind``, the ``facts`` (JSON values), the ``code`` (commit, and whether the package differed from it), the
    ``parents`` (their content hashes by name, taken when they were read: their folders may have been made anew since),
    and size and SHA-256 of every file.
    """
    manifest = {
        "kind": kind,
        "code": code_version(),
        "parents": dict(parents or {}),
        "files": {str(path.relative_to(folder)): _describe(path) for path in _content(folder)},
    }
    if taken := manifest.keys() & facts.keys():
        raise ValueError(f"facts of a manifest cannot be called {', '.join(sorted(taken))}")
    write_json(folder / MANIFEST, manifest | facts)


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of an artifact folder, after checking its kind and the size and SHA-256 of every file in it.

    Files of `LARGE` bytes or more, such as Wan's pairs and weights, are hashed once, and again only when their size or
    time has changed (`hiar.io.fingerprints`): several stages and all of their processes check hundreds of gigabytes.

    The manifest's other facts are not validated here: see `facts`. Raises UserError naming the file that is missing,
    truncated or altered, or lies outside the folder.
    """
    manifest = load_manifest(folder)
    if manifest["kind"] != kind:
        raise UserError(
            f"{folder / MANIFEST}: kind = {manifest['kind']!r}: should be {kind!r}; name a folder of that kind"
        )
    files = {folder / name: expected for name, expected in manifest["files"].items()}
    for path, expected in files.items():
        _check_size(path, expected["size"])
    large = [path for path, expected in files.items() if expected["size"] >= LARGE]
    known = hashes(large, cache_folder()) if large else {}
    for path, expected in files.items():
        _check_hash(path, expected["sha256"], known.get(path))
    return manifest


def content_hash(folder: Path) -> str:
    """SHA-256 over the names, sizes and hashes of the files in the manifest of ``folder``, without facts and commit."""
    return hashlib.sha256(canonical(load_manifest(folder)["files"]).encode()).hexdigest()


@functools.cache
def code_version() -> dict[str, Any]:
    """``{"commit", "dirty"}`` of the git checkout that holds this package; the commit is "unknown" outside of one.

    Only the package's own files count as dirty: metrics and lock files change in every run.
    """
    package = Path(__file__).resolve().parent.parent
    if not _git(package, "ls-files", "--", "errors.py"):  # installed, maybe into an environment inside a checkout
        return {"commit": "unknown", "dirty": False}
    return {
        "commit": _git(package, "rev-parse", "HEAD"),
        "dirty": bool(_git(package, "status", "--porcelain", "--", ".")),
    }


def _git(folder: Path, *arguments: str) -> str:
    """The output of a git command, empty if it fails or there is no git or no checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # set inside hooks
    command = ["git", *arguments]
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=9
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()


def _content(folder: Path) -> list[Path]:
    """The files of an artifact in a fixed order, without manifest and scratch."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _describe(path: Path) -> dict[str, Any]:
    return {"sha256": file_hash(path), "size": path.stat().st_size}


def load_manifest(folder: Path) -> dict[str, Any]:
    """A folder's manifest, with only its common part (`kind`, `files`) validated; `facts` validates the rest."""
    path = folder / MANIFEST
    remedy = "run the stage that makes it, or name another folder"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_file():
            line = f"{folder}: is a file; name a folder, such as `hiar import` makes from a weights file"
            raise UserError(line) from None
        raise UserError(f"{path}: no such file, so the folder is missing or unfinished; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is not a manifest; {remedy}") from None
    for name in facts(folder, manifest, _Common).files:
        if not _is_inside(name):
            raise UserError(f"{path}: files: {name!r} is not a file in this folder; {remedy}")
    return manifest


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    sha256: str
    size: Annotated[int, Field(ge=0)]


class _Common(Facts):
    kind: str
    files: dict[str, _File]


def _is_inside(name: str) -> bool:
    """Whether a name, such as ``transformer/config.json``, cannot lead out of the folder that it is relative to."""
    path = PurePosixPath(name)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _check_size(path: Path, size: int) -> None:
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    if not stat.S_ISREG(state.st_mode):
        raise UserError(f"{path}: is not a file, though its manifest lists it; {_REMEDY}")
    if state.st_size != size:
        raise UserError(f"{path}: size = {state.st_size} bytes: should be {size}; {_REMEDY}")


def _check_hash(path: Path, sha256: str, known: str | None) -> None:
    """Raise UserError if a file's hash differs from ``sha256``; ``known``: its actual hash, if already computed."""
    try:
        found = known or file_hash(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    if found != sha256:
        raise UserError(f"{path}: does not match its manifest (SHA-256 differs); {_REMEDY}")
