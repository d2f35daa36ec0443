"""Content hashes of files, computed once and cached for as long as a file's size and modification time stay the same.

A base model has up to 57 GB, which takes minutes to read, and its files hardly ever change.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hiar.errors import UserError
from hiar.io.files import canonical, write_json
from hiar.io.locks import LOCK, locked
from hiar.io.progress import Progress, tell

RECORDS = "fingerprints.json"
ELSEWHERE = "set HIAR_CACHE to a folder of your own"  # the fix if this cache folder cannot be used
_MB = 2**20
_PART = 8 * _MB  # read at a time


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    size: Annotated[int, Field(ge=0)]
    mtime_ns: int
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    def is_of(self, state: os.stat_result) -> bool:
        return (self.size, self.mtime_ns) == (state.st_size, state.st_mtime_ns)


_Records = TypeAdapter(dict[str, _Record])


def cache_folder() -> Path:
    """The folder for fingerprints and other slow results: HIAR_CACHE, otherwise a folder in the user's cache.

    Raises UserError for a user without a home folder, as in containers.
    """
    if folder := os.environ.get("HIAR_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hiar"
    except RuntimeError:
        line = "HIAR_CACHE: is not set, and this user has no home folder to keep a cache in; set it to a folder"
        raise UserError(line) from None


@contextmanager
def cache_locked(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """Like `hiar.io.locks.locked`, in a cache folder; if it cannot be written, the UserError names HIAR_CACHE."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder, lock))
        except UserError as error:
            reason = str(error).partition(";")[0]
            raise UserError(f"{reason}; fix that, or {ELSEWHERE}") from None
        yield


def require_content(path: Path, content: str | None, field: str) -> None:
    """Raise UserError unless the fingerprint of ``path`` is ``content``, the value of ``field``; None allows any."""
    if content is not None and (found := fingerprint(path, cache_folder())) != content:
        raise UserError(
            f"{path}: SHA-256 = {found}: params.yaml says {field} = {content}; restore the file, or use `hiar run`, "
            "which renews the hashes that it filled in"
        )


def fingerprint(places: Path | Sequence[Path], cache: Path, verify: bool = False) -> str:
    """SHA-256, in hex, over names and contents of files, and of all files in folders except hidden ones.

    It does not change when they are moved or copied. The hash of each file is cached in ``cache``/fingerprints.json by
    the file's absolute path, and used while size and modification time are the same; ``verify`` reads every file again.
    Of several processes one reads and the others wait for its result. Raises UserError when a place is missing, cannot
    be read or changes meanwhile, and when the cache cannot be written or is broken.
    """
    files = [entry for place in ([places] if isinstance(places, Path) else places) for entry in _files(place)]
    known = _records_of([path for _, path in files], cache, verify)
    return hashlib.sha256(canonical([(name, known[path].sha256) for name, path in files]).encode()).hexdigest()


def hashes(paths: Sequence[Path], cache: Path) -> dict[Path, str]:
    """SHA-256 of each file, in hex, cached as `fingerprint` does."""
    return {path: record.sha256 for path, record in _records_of(paths, cache).items()}


def _records_of(paths: Sequence[Path], cache: Path, verify: bool = False) -> dict[Path, _Record]:
    """The records of files; those not in the cache are made, by one process at a time."""
    states = {path: _state(path) for path in paths}
    known = {} if verify else _known(states, cache)
    if len(known) < len(states):  # else nothing is written, and the cache may be read-only
        with cache_locked(cache):
            known = {} if verify else _known(states, cache)  # another process may have read them meanwhile
            todo = [path for path in states if path not in known]
            with Progress("fingerprint", sum(_mb(states[path].st_size) for path in todo), unit="MB") as progress:
                for path in todo:
                    known[path] = _read(path, progress)
                    # after each file, so that none is read again after a kill
                    _remember(cache / RECORDS, path, known[path])
    return known


def _known(states: Mapping[Path, os.stat_result], cache: Path) -> dict[Path, _Record]:
    """The cached records of those files whose size and modification time have not changed."""
    records = _load(cache / RECORDS)
    found = {path: records.get(_key(path)) for path in states}
    return {path: record for path, record in found.items() if record and record.is_of(states[path])}


def _remember(path: Path, file: Path, record: _Record) -> None:
    records = _load(path)
    old = records.get(_key(file))
    if old and old.sha256 != record.sha256 and (old.size, old.mtime_ns) == (record.size, record.mtime_ns):
        tell(f"{file}: its content has changed, though its size and time have not")
    write_json(path, _Records.dump_python(records | {_key(file): record}))


def _files(place: Path) -> list[tuple[str, Path]]:
    """Files with their names relative to the folder that holds ``place``, sorted; links to folders are followed."""
    if place.is_dir():
        found = [
            Path(parent, name)
            for parent, _, names in os.walk(place, followlinks=True)
            for name in names
            if not any(part.startswith(".") for part in Path(parent, name).relative_to(place).parts)
        ]
        if not found:
            raise UserError(f"{place}: holds no files; name a folder with a model")
        return sorted((f"{place.name}/{path.relative_to(place).as_posix()}", path) for path in found)
    return [(place.name, place)]


def _key(path: Path) -> str:
    return os.path.realpath(path)


def _state(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder; name an existing model") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name another") from None


def _read(path: Path, progress: Progress) -> _Record:
    """The record of a file, computed from its bytes."""
    before, done, digest = _state(path), 0, hashlib.sha256()
    for part in _parts(path):
        digest.update(part)
        progress.advance(_mb(done + len(part)) - _mb(done))
        done += len(part)
    record = _Record(size=before.st_size, mtime_ns=before.st_mtime_ns, sha256=digest.hexdigest())
    if done != record.size or not record.is_of(_state(path)):
        raise UserError(f"{path}: changed while it was read; wait until it is complete and run again")
    return record


def _mb(size: int) -> int:
    return -(-size // _MB)


def _parts(path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_PART))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                yield buffer[:count]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); get permission or name another") from None


def _load(path: Path) -> dict[str, _Record]:
    try:
        return _Records.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix that, or {ELSEWHERE}") from None
    except ValidationError:
        raise UserError(f"{path}: is not a record of fingerprints; delete it, files are then read again") from None
