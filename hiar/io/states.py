"""Training states on disk: one folder per state, complete or absent, with one file per process.

``state-00000042`` is the state after 42 updates. ``00000.safetensors``, ``00001.safetensors``, ... each hold one
process's part of the tensors; ``state.json`` is the index: type and shape of each tensor, how many of its rows are in
which file, a SHA-256 per file and one of the index itself. Nothing is pickled, and any number of processes can read any
rows.

This is used instead of torch.distributed.checkpoint (2.13): its own index is a pickle, and its safetensors storage has
neither index nor hashes if processes write separately. In a test with three files it loaded a flipped bit, and left the
rows of a missing middle file as they were, both without an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hiar.errors import UserError
from hiar.io.files import atomic_file, file_hash, remove, sync, write_text, writing
from hiar.io.shards import shard_path

INDEX = "state.json"

Size = Annotated[int, Field(ge=0)]


class Layout(BaseModel):
    """A tensor of a state. rows: how many of its rows each file has, in order; None: the first file has the tensor."""

    model_config = ConfigDict(frozen=True, strict=True)

    dtype: str
    shape: list[Size]
    rows: list[Size] | None


class Index(BaseModel):
    """The index of a state. curve: the metrics of every update before it. files: their SHA-256, in order."""

    model_config = ConfigDict(frozen=True, strict=True)

    step: Size
    curve: list[dict[str, Any]]
    files: list[str]
    tensors: dict[str, Layout]


def states(folder: Path) -> list[Path]:
    """The states in a folder, the newest first."""
    found = [path for path in folder.glob("state-*") if re.fullmatch(r"state-\d+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest state in a folder, if there is one."""
    return next(iter(states(folder)), None)


def state_path(folder: Path, step: int) -> Path:
    """The folder of the state after ``step`` updates."""
    return folder / f"state-{step:08d}"


def temporary_state(folder: Path, step: int) -> Path:
    """The folder in which that state is filled; if a kill leaves it, it is deleted with other temporary files."""
    return folder / f".{state_path(folder, step).name}.tmp"


def layout_of(tensor: Tensor, rows: list[int] | None) -> Layout:
    """The entry of a tensor in the index."""
    return Layout(dtype=str(tensor.dtype).removeprefix("torch."), shape=list(tensor.shape), rows=rows)


def write_part(temporary: Path, rank: int, tensors: dict[str, Tensor]) -> str:
    """Write a process's part of a state; return the file's SHA-256. Raises UserError when it cannot be written."""
    path = shard_path(temporary, rank)
    with atomic_file(path) as file:
        save_file(tensors, file)
        return file_hash(file)


def publish(folder: Path, index: Index) -> None:
    """Write the index of a state whose parts are all written, and give it its name. Raises UserError if that fails."""
    temporary, place = temporary_state(folder, index.step), state_path(folder, index.step)
    content = index.model_dump()
    write_text(temporary / INDEX, _text(content | {"sha256": _hash(content)}))
    give_name(temporary, place)


def give_name(temporary: Path, place: Path) -> None:
    """Give a complete state its name. Raises UserError when that fails."""
    with writing(place):
        sync(temporary)
        remove(place)  # exists only if the same step is saved twice
        os.rename(temporary, place)
        sync(place.parent)


def step_of(place: Path) -> int:
    """The number of updates before a state, from its name."""
    return int(place.name.removeprefix("state-"))


def forget_older(folder: Path, keep: int, milestone: int | None = None) -> None:
    """Delete all states except the newest ``keep`` and those after a multiple of ``milestone`` updates.

    A partly deleted state never has a state's name.
    """
    for place in states(folder)[keep:]:
        if milestone is not None and step_of(place) % milestone == 0:
            continue
        away = place.with_name(f".{place.name}.tmp")
        remove(away)
        os.rename(place, away)
        remove(away)


def parse_index(text: bytes, place: Path) -> Index:
    """The index of the state at ``place``, from its ``text``. Raises UserError if it is not an index, or altered."""
    try:
        content = json.loads(text)
        sha256 = content.pop("sha256")
        index = Index.model_validate(content)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, ValidationError):
        raise UserError(f"{place / INDEX}: is not the index of a state; {_remedy(place)}") from None
    if sha256 != _hash(content):
        raise UserError(f"{place / INDEX}: is damaged (its SHA-256 differs); {_remedy(place)}")
    return index


def read_index(place: Path) -> Index:
    """The index of the state at ``place``. Raises UserError when it is missing, unreadable, or altered."""
    try:
        return parse_index((place / INDEX).read_bytes(), place)
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise UserError(f"{place / INDEX}: {reason}; {_remedy(place)}") from None


def check_files(place: Path, index: Index, numbers: Iterable[int]) -> None:
    """Raise UserError naming the first of these files that is missing or whose SHA-256 is not that of the index."""
    for number in numbers:
        path = shard_path(place, number)
        try:
            found = file_hash(path)
        except OSError as error:
            raise UserError(f"{path}: {(error.strerror or 'cannot be read').lower()}; {_remedy(place)}") from None
        if found != index.files[number]:
            raise UserError(f"{path}: is damaged (its SHA-256 is not that in {INDEX}); {_remedy(place)}")


class StoredState:
    """The tensors of a state, each read from the files when needed. Raises UserError if a file cannot be opened."""

    def __init__(self, place: Path, index: Index) -> None:
        self.layouts: Mapping[str, Layout] = index.tensors
        try:
            self.files = [safe_open(shard_path(place, number), framework="pt") for number in range(len(index.files))]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{place}: {' '.join(str(error).split())}; {_remedy(place)}") from None

    def read(self, name: str, own: range | None = None) -> Tensor:
        """A copy of some rows of a tensor, or of all. Raises ValueError if the files lack a part of it."""
        layout = self.layouts[name]
        shape = layout.shape if own is None else [len(own), *layout.shape[1:]]
        try:
            if layout.rows is None:
                whole = self.files[0].get_tensor(name)
                found = whole if own is None else whole[own.start : own.stop]
            else:
                found = torch.cat(self._parts(name, layout.rows, range(sum(layout.rows)) if own is None else own))
        except (SafetensorError, IndexError) as error:
            raise ValueError(f"{name}: {' '.join(str(error).split())}") from None
        if list(found.shape) != shape or str(found.dtype) != f"torch.{layout.dtype}":
            raise ValueError(f"{name}: files hold {tuple(found.shape)} of {tuple(shape)}")
        return found.clone() if layout.rows is None else found

    def _parts(self, name: str, rows: list[int], own: range) -> list[Tensor]:
        """The rows ``own``, from each file that has some; if ``own`` is empty, zero rows of the first file with any."""
        parts: list[Tensor] = []
        first = 0
        for number, count in enumerate(rows):
            start, stop = max(own.start - first, 0), min(own.stop - first, count)
            if start < stop or not (parts or own or not count):
                parts.append(self.files[number].get_slice(name)[start : max(start, stop)])
            first += count
        return parts


def _text(content: Mapping[str, Any]) -> str:
    """JSON with the keys in the given order, so that columns of a curve keep theirs."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()


def _remedy(place: Path) -> str:
    return f"remove {place}: training resumes from an older state beside it, or starts over if there is none"
