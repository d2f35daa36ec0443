"""Weights downloaded from their publishers, by explicit command only."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import BinaryIO

from hiar.errors import UserError
from hiar.io.files import atomic_file, file_hash, writing
from hiar.io.progress import Progress
from hiar.vbench.environment import Environment
from hiar.vbench.weights import WEIGHTS, known_weight

PART = 1 << 20  # bytes read at a time
SECONDS = 60  # without data after which a download is given up


def fetch(folder: Path, name: str, environment: Environment, archives: Path) -> Path:
    """Bring one complete weight to its place, once its size and hash match those published, if any are.

    environment: files that its package clip contains are copied from there. archives: a folder that keeps an archive
    for its other files, one gigabyte in DreamSim's case. Raises UserError when the file cannot be obtained, or differs
    from the published one; its place is then unchanged.
    """
    known, path = WEIGHTS[known_weight(name)], folder / name
    with atomic_file(path) as temporary:
        _obtain(name, temporary, environment, archives)
        if known.size is not None and temporary.stat().st_size != known.size:
            raise UserError(f"{known.url}: gives {temporary.stat().st_size} bytes: should be {known.size}; try again")
        found = file_hash(temporary)
        if not found.startswith(known.sha256):
            raise UserError(f"{known.url}: SHA-256 {found}: should be {known.sha256}; it was discarded, try again")
    return path


def _obtain(name: str, to: Path, environment: Environment, archives: Path) -> None:
    known = WEIGHTS[name]
    packaged = environment.packages / "clip" / Path(name).name
    if packaged.is_file():
        shutil.copyfile(packaged, to)
        return
    if known.member is None:
        _download(known.url, to)
        return
    archive = archives / known.url.rpartition("/")[2]
    try:
        if not archive.exists():
            with atomic_file(archive) as temporary:
                _download(known.url, temporary)
        with zipfile.ZipFile(archive) as opened, opened.open(known.member) as member, to.open("wb") as file:
            shutil.copyfileobj(member, file, PART)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{known.url}: has no {known.member} ({error}); get {to.parent / name} elsewhere") from None


def _download(url: str, to: Path) -> None:
    """Download a URL, with progress in MiB."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as source:  # https alone, from the table of weights
            length = source.headers.get("Content-Length")
            with writing(to), to.open("wb") as file:
                _copy(source, file, url.rpartition("/")[2], int(length) if length else None)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: cannot be fetched ({reason}); try again, or copy the file from elsewhere") from None


def _copy(source: BinaryIO, file: BinaryIO, label: str, length: int | None) -> None:
    done = 0
    with Progress(label, length and -(-length // PART), unit="MiB") as progress:
        while part := source.read(PART):
            file.write(part)
            done += len(part)
            progress.advance()
    if length is not None and done != length:
        raise ConnectionError(f"it ended after {done} of {length} bytes")
