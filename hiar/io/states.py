"""States of a training run on the disk: a folder a state, whole or absent, in which each process has a file of its own.

``state-00000042`` is what 42 updates left: ``00000.safetensors``, ``00001.safetensors``, ... hold what one process each
had of the tensors, and ``state.json`` says what there is: type and shape of each tensor, how many of its rows lie in
which file, and a SHA-256 a file and of itself. Nothing is pickled, and any number of processes reads any rows.

This takes the place of torch.distributed.checkpoint (2.13): its own index is a pickle, and its storage of safetensors
has neither index nor hashes where processes write apart. Tried with three files, it loads a flipped bit, and leaves the
rows of a lost one in the middle as they were, both without a word.
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
    """A tensor of a state. rows: how many of them each file has, in order; None: the first file has the whole."""

    model_config = ConfigDict(frozen=True, strict=True)

    dtype: str
    shape: list[Size]
    rows: list[Size] | None


class Index(BaseModel):
    """What a state says of itself. curve: the metrics of every update before it. files: their SHA-256, in order."""

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
    """Where the state after ``step`` updates lies."""
    return folder / f"state-{step:08d}"


def temporary_state(folder: Path, step: int) -> Path:
    """Where that state is filled; what a kill leaves there is cleared away with other temporary files."""
    return folder / f".{state_path(folder, step).name}.tmp"


def layout_of(tensor: Tensor, rows: list[int] | None) -> Layout:
    """What the index says of a tensor."""
    return Layout(dtype=str(tensor.dtype).removeprefix("torch."), shape=list(tensor.shape), rows=rows)


def write_part(temporary: Path, rank: int, tensors: dict[str, Tensor]) -> str:
    """Write what a process has of a state; returns the file's SHA-256. Raises UserError when it cannot be written."""
    path = shard_path(temporary, rank)
    with atomic_file(path) as file:
        save_file(tensors, file)
        return file_hash(file)


def publish(folder: Path, index: Index) -> None:
    """Describe a state of which all parts are written, and give it its name. Raises UserError when that fails."""
    temporary, place = temporary_state(folder, index.step), state_path(folder, index.step)
    content = index.model_dump()
    write_text(temporary / INDEX, _text(content | {"sha256": _hash(content)}))
    give_name(temporary, place)


def give_name(temporary: Path, place: Path) -> None:
    """Rename a state that is complete. Raises UserError when that fails."""
    with writing(place):
        sync(temporary)
        remove(place)  # only where somebody saves one step twice
        os.rename(temporary, place)
        sync(place.parent)


def step_of(place: Path) -> int:
    """How many updates a state comes after, by its name."""
    return int(place.name.removeprefix("state-"))


def forget_older(folder: Path, keep: int, milestone: int | None = None) -> None:
    """Delete all states but the newest ``keep``, and those after a multiple of ``milestone`` updates.

    Half a state is never left under its name.
    """
    for place in states(folder)[keep:]:
        if milestone is not None and step_of(place) % milestone == 0:
            continue
        away = place.with_name(f".{place.name}.tmp")
        remove(away)
        os.rename(place, away)
        remove(away)


def parse_index(text: bytes, place: Path) -> Index:
    """The index of the state at ``place``. Raises UserError when it is none, or altered."""
    try:
        content = json.loads(text)
        sha256 = content.pop("sha256")
        index = Index.model_validate(content)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, ValidationError):
        raise UserError(f"{place / INDEX}: is no index of a state; {_remedy(place)}") from None
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
    """Raise UserError naming the first of these files that is missing or is not what the index says."""
    for number in numbers:
        path = shard_path(place, number)
        try:
            found = file_hash(path)
        except OSError as error:
            raise UserError(f"{path}: {(error.strerror or 'cannot be read').lower()}; {_remedy(place)}") from None
        if found != index.files[number]:
            raise UserError(f"{path}: is damaged (its SHA-256 is not that in {INDEX}); {_remedy(place)}")


class StoredState:
    """The tensors of a state, read from its files when they are asked for."""

    def __init__(self, place: Path, index: Index) -> None:
        self.layouts: Mapping[str, Layout] = index.tensors
        try:
            self.files = [safe_open(shard_path(place, number), framework="pt") for number in range(len(index.files))]
        except (OSError, SafetensorError) as error:
            raise UserError(f"{place}: {' '.join(str(error).split())}; {_remedy(place)}") from None

    def read(self, name: str, own: range | None = None) -> Tensor:
        """Some rows of a tensor, or the whole, in memory of its own. Raises ValueError when files lack a part of it."""
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
        """The rows ``own`` out of each file that has some of them; no row of the first one where there are none."""
        parts: list[Tensor] = []
        first = 0
        for number, count in enumerate(rows):
            start, stop = max(own.start - first, 0), min(own.stop - first, count)
            if start < stop or not (parts or own or not count):
                parts.append(self.files[number].get_slice(name)[start : max(start, stop)])
            first += count
        return parts


def _text(content: Mapping[str, Any]) -> str:
    """JSON whose order is kept: columns of a curve are told in the order in which they came."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()


def _remedy(place: Path) -> str:
    return f"remove {place}: training goes on from an older state beside it, or anew where there is none"
