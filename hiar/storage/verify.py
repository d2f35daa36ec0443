"""Verification of a store: every object is read and compared with its name and its manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.io.progress import Progress
from hiar.storage.runs import (
    LOCK,
    OBJECT,
    RECORD,
    REPORT,
    Run,
    key_of,
    members,
    outs_of,
    record_of,
    runs_committed,
    runs_here,
    runs_stored,
)
from hiar.storage.store import Store, Stored, cache_of, content, each, listing, pieces, unfinished_uploads


@dataclass(frozen=True)
class Damage:
    """A key that is ``missing``, ``truncated``, ``altered``, ``surplus`` or ``unfinished``, and the reason in words."""

    kind: str
    key: str
    said: str


@dataclass
class Expected:
    """What should be true of an object: what names it (in words), its size in bytes, its SHA-256 from a manifest."""

    said: str
    size: int | None = None
    sha256: str | None = None


@dataclass
class Inventory:
    """The listed and the expected objects, by key, and the damages found so far."""

    listed: Mapping[str, Stored]
    expected: dict[str, Expected] = field(default_factory=dict)
    damages: list[Damage] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # folders whose files are unknown, as their lists are damaged

    def name(self, out: Mapping[str, Any], said: str) -> None:
        """Add an output that a stage of a lock or record names."""
        known = self.expected.setdefault(key_of(out["md5"]), Expected(f"{out.get('path')} of {said}"))
        if not out["md5"].endswith(".dir") and isinstance(out.get("size"), int):
            known.size = out["size"]


def verify(store: Store, root: Path) -> tuple[list[Damage], int]:
    """All damages in a store, sorted by key, and the number of objects in it.

    Expected is what a dvc.lock names (in this working tree, in a commit or in the store), and what a stage's record in
    the store names; all else below the remote's prefix is surplus. Raises UserError when the store cannot be read.
    """
    listed = listing(store)
    found = Inventory(listed)
    _name_all(store, root, found)
    cache = cache_of(root)
    _read_manifests(store, found, _open_folders(store, found, cache), cache)
    for key, expected in found.expected.items():
        if key not in listed:
            found.damages.append(Damage("missing", key, expected.said))
    known = {damage.key for damage in found.damages}
    for key in listed.keys() - known:
        if key not in found.expected and not any(kind.fullmatch(key) for kind in (RECORD, REPORT, LOCK)):
            what = "no run names it" if OBJECT.fullmatch(key) else "is not something that a run writes"
            what += f", unless it belongs to {found.unknown[0]}, whose list is damaged" if found.unknown else ""
            found.damages.append(Damage("surplus", key, what))
            known.add(key)
    _read_objects(store, found, [key for key in listed if key not in known])
    for upload in unfinished_uploads(store):
        key = upload["Key"].removeprefix(store.prefix)
        found.damages.append(Damage("unfinished", key, f"its upload began at {upload['Initiated']:%Y-%m-%d %H:%M}"))
    return sorted(found.damages, key=lambda damage: (damage.key, damage.kind)), len(listed)


def _name_all(store: Store, root: Path, found: Inventory) -> None:
    """Add what locks and records name."""
    stored, damaged = runs_stored(store, found.listed)
    found.damages += [_damaged(found, key, "its SHA-256 is not the one in its name") for key in damaged]
    for run in [*runs_here(root), *_committed(root), *stored]:
        for out in run.outs():
            found.name(out, f"experiment {run.experiment} ({run.place})")
    records = [key for key in found.listed if RECORD.fullmatch(key)]
    for key, data in zip(records, each(lambda key: content(store, key), records), strict=True):
        record = _record(key, data)
        if record is None:
            found.damages.append(_damaged(found, key, "is not the record that its name promises"))
        else:
            for out in outs_of(record):
                found.name(out, f"the record of {record['cmd']}")


def _committed(root: Path) -> list[Run]:
    try:
        return runs_committed(root)
    except UserError:  # without git's history the locks here and in the store must do
        return []


def _record(key: str, data: bytes) -> dict[str, Any] | None:
    """A stage's record, if its hash is the one in its key: DVC's hash of everything in it except sizes and counts."""
    from dvc.utils import dict_sha256
    from dvc.utils.serialize import dumps_yaml

    try:
        record: dict[str, Any] = record_of(data, key)
        named = dict_sha256(record, exclude=["size", "nfiles"])
    except (UserError, ValueError, TypeError, AttributeError):
        return None
    whole = key.endswith(f"/{named}") and "cmd" in record and dumps_yaml(record).encode() == data
    return record if whole else None


def _open_folders(store: Store, found: Inventory, cache: Path) -> list[dict[str, str]]:
    """The files of every expected folder, as path -> key; they are added to the expected objects.

    Lists that are damaged or missing in the store are taken from this project's cache, if it has them.
    """
    keys = [key for key in found.expected if key.endswith(".dir")]
    folders = []
    for key, data in zip(
        keys, each(lambda key: content(store, key) if key in found.listed else b"", keys), strict=True
    ):
        if data and not data.endswith(b"]"):
            found.damages.append(Damage("truncated", key, f"is cut short: {found.expected[key].said}"))
        entries = members(_whole(data, key, cache))
        if entries is None:
            found.unknown.append(found.expected[key].said)
            continue
        folders.append({path: key_of(name) for path, name in entries})
        for path, member in folders[-1].items():
            found.expected.setdefault(member, Expected(f"{path} in {found.expected[key].said}"))
    return folders


def _whole(data: bytes, key: str, cache: Path) -> bytes:
    """An object's correct content: ``data``, or the copy in this project's cache; empty if neither is intact."""
    own = cache / key
    for one in (data, own.read_bytes() if own.is_file() else b""):
        if _md5(one) == _name_of(key):
            return one
    return b""


def _read_manifests(store: Store, found: Inventory, folders: Iterable[Mapping[str, str]], cache: Path) -> None:
    """Add the sizes and SHA-256 of files that the manifests of artifacts give."""
    for files in folders:
        key = files.get("manifest.json")
        if key is None:
            continue
        data = content(store, key) if key in found.listed else b""
        try:
            told = json.loads(_whole(data, key, cache))["files"]
            for path, file in told.items():
                expected = found.expected[files[path]]
                expected.size, expected.sha256 = int(file["size"]), str(file["sha256"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # reported when objects are read, or not a manifest of ours


def _read_objects(store: Store, found: Inventory, keys: Iterable[str]) -> None:
    """Read every object that has a hash in its name, and add those that differ to the damages."""
    todo = [key for key in keys if OBJECT.fullmatch(key) or REPORT.fullmatch(key)]
    total = sum(found.listed[key].size for key in todo)
    with Progress(f"read {store.url}", total, unit="bytes") as progress:
        for key, said in zip(todo, each(lambda key: _fault(store, key, found.expected.get(key)), todo), strict=True):
            progress.advance(found.listed[key].size)
            if said is not None:
                found.damages.append(_damaged(found, key, said))


def _fault(store: Store, key: str, expected: Expected | None) -> str | None:
    """What is wrong with an object in the store, if anything."""
    md5, sha = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    size = 0
    for piece in pieces(store, key):
        md5.update(piece)
        sha.update(piece)
        size += len(piece)
    if report := REPORT.fullmatch(key):
        return None if sha.hexdigest() == report[2] else "its SHA-256 is not the one in its name"
    if expected is not None and expected.size is not None and size != expected.size:
        return f"is {size} bytes, should be {expected.size}: {expected.said}"
    if md5.hexdigest() != _name_of(key):
        return "its MD5 is not the one in its name" + (f": {expected.said}" if expected else "")
    if expected is not None and expected.sha256 not in (None, sha.hexdigest()):
        return f"its SHA-256 is not its manifest's: {expected.said}"
    return None


def _damaged(found: Inventory, key: str, said: str) -> Damage:
    expected = found.expected.get(key)
    short = expected is not None and expected.size is not None and found.listed[key].size < expected.size
    return Damage("truncated" if short or found.listed[key].size == 0 else "altered", key, said)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _name_of(key: str) -> str:
    """The MD5 from an object's key."""
    return "".join(key.removesuffix(".dir").split("/")[-2:])
