"""The contents of a store: DVC's objects by hash, records of stages (its run cache), and the locks of whole runs.

| key | content |
|---|---|
| ``files/md5/ab/cdef...`` | a file, by the MD5 of its bytes; ``....dir``: the names and hashes of a folder's files |
| ``runs/ab/KEY/VALUE`` | how a stage was run, and its outputs: one stage of a dvc.lock |
| ``locks/EXPERIMENT/SHA256.lock`` | the dvc.lock of a whole run, which `hiar run` stores at its end |
| ``reports/EXPERIMENT/SHA256/NAME`` | a report that was shared |
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.storage.store import Store, Stored, content, each

DEFAULT = "default"  # the name of the experiment of params.yaml without overrides
OBJECT = re.compile(r"files/md5/([0-9a-f]{2})/([0-9a-f]{30}(?:\.dir)?)")
RECORD = re.compile(r"runs/([0-9a-f]{2})/(\1[0-9a-f]{62})/([0-9a-f]{64})")
LOCK = re.compile(r"locks/([^/]+)/([0-9a-f]{64})\.lock")
REPORT = re.compile(r"reports/([^/]+)/([0-9a-f]{64})/([^/]+)")
NAME = re.compile(r"[0-9a-f]{32}(\.dir)?")
# A commit, or a lock in it, in git's log with -z: without that, names with an umlaut are in quotes.
CHANGE = re.compile(r"commit ([0-9a-f]+)\0|:\d+ \d+ [0-9a-f]+ ([0-9a-f]+) [AM]\0([^\0]*dvc\.lock)\0")


@dataclass(frozen=True)
class Run:
    """A dvc.lock: its experiment, its place (a key in the store, or words), its stages, and when it was stored."""

    experiment: str
    place: str
    stages: Mapping[str, Any]
    modified: datetime | None = None

    def outs(self) -> Iterator[dict[str, Any]]:
        """Every output it names: ``path``, ``md5`` and usually ``size`` in bytes."""
        for record in self.stages.values():
            yield from outs_of(record)


def key_of(name: str) -> str:
    """The key of an object that DVC calls ``name``."""
    return f"files/md5/{name[:2]}/{name[2:]}"


def outs_of(record: Any) -> Iterator[dict[str, Any]]:
    """The outputs that a stage of a dvc.lock, or its record, names; malformed ones are left out."""
    outs = record.get("outs") if isinstance(record, dict) else None
    for out in outs if isinstance(outs, list) else []:
        if isinstance(out, dict) and NAME.fullmatch(str(out.get("md5"))):
            yield out


def runs_here(root: Path) -> list[Run]:
    """The dvc.lock of every experiment in this working tree."""
    places = [(DEFAULT, root / "dvc.lock"), *((path.parent.name, path) for path in root.glob("runs/*/dvc.lock"))]
    return [Run(name, "here", stages_of(path.read_bytes(), path)) for name, path in places if path.is_file()]


def runs_committed(root: Path) -> list[Run]:
    """Every dvc.lock in a commit of this clone, on any branch or tag.

    Raises UserError without git or a repository, and in a shallow clone.
    """
    if _git(root, "rev-parse", "--is-shallow-repository").strip() != "false":
        raise UserError(f"{root}: is a shallow clone, missing commits may name more; run git fetch --unshallow")
    log = ["log", "-z", "--all", "--raw", "--no-abbrev", "--no-renames", "-m", "--format=commit %h"]
    found, commit = {}, ""
    for match in CHANGE.finditer(_git(root, *log, "--", "dvc.lock", "runs/*/dvc.lock")):
        begun, blob, path = match.groups()
        if begun:
            commit = begun[:10]
        elif blob not in found:
            name = Path(path).parent.name or DEFAULT
            found[blob] = Run(name, f"commit {commit}", stages_of(_git(root, "cat-file", "blob", blob).encode(), path))
    return list(found.values())


def runs_stored(store: Store, listed: Mapping[str, Stored]) -> tuple[list[Run], list[str]]:
    """The locks of whole runs in a store, newest first, and the keys of those whose SHA-256 differs from their name."""
    keys = [key for key in listed if LOCK.fullmatch(key)]
    runs, damaged = [], []
    for key, data in zip(keys, each(lambda key: content(store, key), keys), strict=True):
        found = LOCK.fullmatch(key)
        assert found is not None
        if sha256(data).hexdigest() != found[2]:
            damaged.append(key)
        else:
            runs.append(Run(found[1], key, stages_of(data, key), listed[key].modified))
    return sorted(runs, key=lambda run: str(run.modified), reverse=True), damaged


def stages_of(data: bytes, place: object) -> dict[str, Any]:
    """The stages of a dvc.lock. Raises UserError if ``data`` is not a dvc.lock."""
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml

    try:
        stages = parse_yaml(data, place)["stages"]  # DVC writes YAML 1.2, in which `no` is a string
        if not isinstance(stages, dict):
            raise ValueError
    except (YAMLFileCorruptedError, ValueError, LookupError, TypeError):
        raise UserError(f"{place}: is not a dvc.lock; restore it (git checkout), or run the experiment again") from None
    return stages


def record_of(data: bytes, place: object) -> Any:
    """A stage's record, as below the stage's name in a dvc.lock. Raises UserError if ``data`` is not a record."""
    return stages_of(b"stages:\n" + b"".join(b"  " + line for line in data.splitlines(True)), place)


def members(data: bytes) -> list[tuple[str, str]] | None:
    """Path and object name of every file of a folder, from its ``.dir``; None if that is damaged."""
    try:
        return [(str(entry["relpath"]), str(entry["md5"])) for entry in json.loads(data)]
    except (ValueError, KeyError, TypeError):
        return None


def _git(root: Path, *arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise UserError(f"{root}: git cannot list the commits ({reason}); run this in a clone") from None
    return run.stdout
