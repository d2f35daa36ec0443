"""Tensor shards: safetensors files ``00000.safetensors``, ``00001.safetensors``, ... that contain their checksum.

The SHA-256 covers names, types, shapes and bytes of the tensors and the metadata, and is in the file's own header: a
shard is one file that appears by one rename, and can be copied and checked without a second file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hiar.errors import UserError
from hiar.io.files import atomic_file

_ALIGNED = 8  # bytes: the length of a safetensors header is a multiple of it
_HEADER = "hiar"  # one JSON entry: safetensors writes several in an order that differs from process to process


def shard_path(folder: Path, index: int) -> Path:
    """The file of shard ``index`` (from 0)."""
    return folder / f"{index:05d}.safetensors"


def write_shard(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a shard atomically, byte-deterministically. Raises UserError when it cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"metadata": metadata, "sha256": _checksum(tensors, metadata)}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, {_HEADER: json.dumps(header, sort_keys=True)})


def join_shards(paths: Sequence[Path], name: str, out: Path) -> None:
    """Join the rows of the float32 tensor ``name`` from several shards into one, with one shard in memory at a time.

    The bytes are those that `write_shard` writes for all rows. Raises UserError when a shard is missing or broken, or
    ``out`` cannot be written.
    """
    rows, shape = 0, torch.Size()
    for path in paths:
        own = read_shard(path)[name]
        rows, shape = rows + len(own), own.shape[1:]
    whole = [rows, *shape]
    layout, size = {name: [str(torch.float32), whole]}, 4 * math.prod(whole)
    digest = _digest({}, layout)
    for path in paths:
        digest.update(_bytes(read_shard(path)[name]))
    header = {"metadata": {}, "sha256": digest.hexdigest()}
    entries = {
        "__metadata__": {_HEADER: json.dumps(header, sort_keys=True)},
        name: {"dtype": "F32", "shape": whole, "data_offsets": [0, size]},
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with atomic_file(out) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for path in paths:
            file.write(_bytes(read_shard(path)[name]))


def read_shard(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a shard, checked. Raises UserError when it is missing, truncated, altered or no shard."""
    remedy = "run the stage that makes it again"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        whole = header["sha256"] == _checksum(tensors, header["metadata"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such shard; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is truncated or not a shard ({error}); delete it and {remedy}") from None
    if not whole:
        raise UserError(f"{path}: is corrupt (its checksum differs); delete it and {remedy}")
    return tensors


# Rows (n,), and an index into each row, by dimension.
Part = tuple[Tensor, *tuple[int | slice, ...]]


class Rows(Protocol):
    """The rows that training draws samples from: a tensor, or an object indexed like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Tensor | Part, /) -> Tensor: ...


class StoredRows:
    """The rows of a tensor stored in shards, read from the files only when indexed, as float32.

    Every shard is first read and checked, one at a time, unless a manifest that lists them was ``checked`` already.
    Raises UserError when one is missing or broken.
    """

    def __init__(self, folder: Path, name: str, shards: int, *, checked: bool = False) -> None:
        self.first = [0]
        self.shards: list[Tensor] = []
        for path in (shard_path(folder, index) for index in range(shards)):
            if not (checked and path.exists()):
                read_shard(path)
            try:
                with safe_open(path, framework="pt") as file:
                    self.shards.append(file.get_tensor(name))  # memory-mapped: the OS can drop what was read
            except SafetensorError:
                read_shard(path)  # raises a UserError that says what is wrong
                raise
            self.first.append(self.first[-1] + len(self.shards[-1]))

    def __len__(self) -> int:
        return self.first[-1]

    def __getitem__(self, chosen: Tensor | Part) -> Tensor:
        """Rows (n,), or a part of each, as indexing a tensor returns them; nothing else is read."""
        rows, *part = chosen if isinstance(chosen, tuple) else (chosen,)
        return torch.stack([self._row(number, *part) for number in rows.tolist()]).float()

    def _row(self, number: int, *part: int | slice) -> Tensor:
        index = bisect_right(self.first, number) - 1
        return self.shards[index][(number - self.first[index], *part)]


def complete_shards(folder: Path) -> list[int]:
    """Indices, ascending, of the intact shards in ``folder``, each one read and checked."""
    return sorted(
        int(path.stem) for path in folder.glob("*.safetensors") if re.fullmatch(r"\d{5}", path.stem) and is_whole(path)
    )


def is_whole(path: Path) -> bool:
    """Whether there is an intact shard at ``path``, which is read and checked."""
    try:
        read_shard(path)
    except UserError:
        return False
    return True


def _checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 over everything in a shard, independent of the order of its entries."""
    digest = _digest(metadata, {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()})
    for name in sorted(tensors):
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _digest(metadata: dict[str, str], layout: dict[str, list[Any]]) -> hashlib._Hash:
    return hashlib.sha256(json.dumps([metadata, layout], sort_keys=True).encode())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
