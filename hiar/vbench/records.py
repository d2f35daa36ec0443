"""The records of a dimension's videos: a file of JSON lines that stays readable after a kill.

The first line holds what decides the values (protocol, weights, versions, device); each other line is a video or clip.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.io.files import write_text, writing
from hiar.io.progress import tell


class Records:
    """The records of one dimension, by key; `add` writes them to disk. Made by `open_records`."""

    def __init__(self, path: Path, known: dict[str, dict[str, Any] | None]) -> None:
        self.path, self.known = path, known

    def add(self, key: str, name: str, fields: dict[str, Any] | None) -> None:
        """Keep the official fields of a video's result, None where VBench gives it none. name: for human readers."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_line({"key": key, "video": name, "fields": fields}))
            file.flush()
            os.fsync(file.fileno())
        self.known[key] = fields


def records_path(out: Path, dimension: str) -> Path:
    """The file of a dimension's records."""
    return out / f"{dimension}.jsonl"


@contextmanager
def open_records(out: Path, dimension: str, decides: Mapping[str, Any]) -> Iterator[Records]:
    """The records of a dimension, open for this process alone.

    Those of another protocol, device, weights or versions are set aside as ``DIMENSION.aside-N.jsonl``, with a message.
    Raises UserError when another process has them open, or the file holds anything else.
    """
    path = records_path(out, dimension)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / f".{dimension}.lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{path}: another process is scoring this dimension; wait for it, or choose another --out"
            ) from None
        yield Records(path, _taken_up(path, dict(decides)))


def _taken_up(path: Path, decides: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """The records in the file, which afterwards exists, begins with ``decides`` and ends with a complete line."""
    lines = _whole_lines(path)
    if lines and lines[0].get("decides") == decides:
        write_text(path, "".join(map(_line, lines)))
        return {one["key"]: one["fields"] for one in lines[1:]}
    if lines:
        aside = next(
            place for number in itertools.count(1) if not (place := path.with_suffix(f".aside-{number}.jsonl")).exists()
        )
        path.rename(aside)
        tell(f"{path}: was made with {_difference(lines[0].get('decides'), decides)}; it is set aside as {aside.name}")
    write_text(path, _line({"decides": decides}))
    return {}


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); choose another --out") from None
    lines = data.split(b"\n")[:-1]  # a kill leaves part of a line at the end
    try:
        found = [json.loads(line) for line in lines]
        if all(isinstance(one, dict) for one in found) and all({"key", "fields"} <= one.keys() for one in found[1:]):
            return found
    except ValueError:
        pass
    raise UserError(f"{path}: holds lines that are not records; delete it, or choose another --out")


def _difference(old: Any, new: dict[str, Any]) -> str:
    if not isinstance(old, dict):
        return "something else"
    return "other " + ", ".join(name for name in new if old.get(name) != new[name])


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
