"""What an artifact folder says of itself: ``manifest.json``, made here and checked wherever it comes from.

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
LARGE = 2**28  # bytes of a file that is read once, and afterwards known by size and time


class Facts(BaseModel):
    """Some facts of a manifest, with their types; others may stand beside them."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


Known = TypeVar("Known", bound=Facts)


def facts(folder: Path, manifest: Any, known: type[Known]) -> Known:
    """Facts of the manifest of ``folder``, checked: anybody may have written it.

    Raises UserError naming the one that is missing or not valid.
    """
    try:
        return known.model_validate(manifest)
    except ValidationError as error:
        raise UserError(
            f"{folder / MANIFEST}: {explain(error, known)}; run the stage that makes it, or name another folder"
        ) from None


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

    Files from `LARGE` on, such as pairs and weights of Wan, are read once, and again only when their size or time has
    changed (`hiar.io.fingerprints`): several stages and all of their processes ask for hundreds of gigabytes.

    Its other facts are as whoever wrote it left them: see `facts`. Raises UserError naming the file that is missing,
    truncated or altered, or lies elsewhere.
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
    """SHA-256 over the names, sizes and hashes of the files in the manifest of ``folder``; no fact or commit enters."""
    return hashlib.sha256(canonical(load_manifest(folder)["files"]).encode()).hexdigest()


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


def _content(folder: Path) -> list[Path]:
    """The files of an artifact in a fixed order: no manifest, no scratch."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _describe(path: Path) -> dict[str, Any]:
    return {"sha256": file_hash(path), "size": path.stat().st_size}


def load_manifest(folder: Path) -> dict[str, Any]:
    """A manifest whose common part is what it should be, whoever wrote it; the other facts are for `facts`."""
    path = folder / MANIFEST
    remedy = "run the stage that makes it, or name another folder"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_file():
            line = f"{folder}: is a file; name a folder, which `hiar import` makes of others' weights"
            raise UserError(line) from None
        raise UserError(f"{path}: no such file, so the folder is missing or unfinished; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is not a manifest; {remedy}") from None
    for name in facts(folder, manifest, _Common).files:
        if not _is_inside(name):
            raise UserError(f"{path}: files: {name!r} is no file in this folder; {remedy}")
    return manifest


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    sha256: str
    size: Annotated[int, Field(ge=0)]


class _Common(Facts):
    kind: str
    files: dict[str, _File]


def _is_inside(name: str) -> bool:
    """Whether a name, such as ``transformer/config.json``, can only be that of a file below the folder it is in."""
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
        raise UserError(f"{path}: is no file, though its manifest says so; {_REMEDY}")
    if state.st_size != size:
        raise UserError(f"{path}: size = {state.st_size} bytes: should be {size}; {_REMEDY}")


def _check_hash(path: Path, sha256: str, known: str | None) -> None:
    """Raise UserError where a file holds something else; ``known``: the hash of what it holds, where that is known."""
    try:
        found = known or file_hash(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    if found != sha256:
        raise UserError(f"{path}: is not what its manifest says (SHA-256 differs); {_REMEDY}")
