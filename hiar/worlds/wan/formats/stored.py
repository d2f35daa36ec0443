"""Tensors in files, by name: shapes and types immediately, values on demand. No code in a pickle ever runs."""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Parameter

from hiar.errors import UserError

INDEX = ".safetensors.index.json"  # after the stem, where the tensors are in several files
_AGAIN = "copy or download it again"
_POINTER = b"version https://git-lfs"
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; ``load`` gives its values, which may be a view of the mapped file: copy before changing."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_file(path: Path) -> dict[str, Stored] | Any:
    """The content of a file, its format known by the first bytes: tensors of safetensors, or the object torch saved.

    Files of torch are memory-mapped (from before torch 1.6: read whole); only tensors and plain containers are
    accepted. Raises UserError when the file is missing, empty, truncated, a Git LFS pointer, of another format, or
    needs code to be run.
    """
    with reading(path):
        if not path.exists():
            raise UserError(f"{path}: no such file; name a checkpoint")
        if not path.is_file():
            raise UserError(f"{path}: is not a regular file; name a checkpoint")
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    if not head:
        raise UserError(f"{path}: is empty; {_AGAIN}")
    if head == _POINTER:
        raise UserError(f"{path}: is a pointer of Git LFS, not the file itself; fetch that with git lfs pull")
    if head[8:9] == b"{":
        return read_safetensors(path)
    if head.startswith((b"PK", b"\x80")):
        return _read_torch(path, mapped=head.startswith(b"PK"))
    raise UserError(f"{path}: is neither safetensors nor a file of torch.save; name a checkpoint, or {_AGAIN}")


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file. Raises UserError when it is missing, truncated or holds no weights."""
    try:
        with reading(path):
            file = safe_open(path, framework="pt")
            heads = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise UserError(f"{path}: is truncated or not a safetensors file ({_short(error)}); {_AGAIN}") from None
    for name, head in heads.items():
        _require_plain(name, _TYPES.get(head.get_dtype(), head.get_dtype()), str(path))
    return {
        name: Stored(tuple(head.get_shape()), _TYPES[head.get_dtype()], partial(file.get_tensor, name))
        for name, head in heads.items()
    }


def read_sharded(folder: Path, stem: str) -> dict[str, Stored]:
    """The tensors of ``folder``: of the file ``stem``.safetensors, or of all in its index; only headers are read.

    Raises UserError when a file is missing or truncated, or does not hold what the index says.
    """
    index, single = folder / f"{stem}{INDEX}", folder / f"{stem}.safetensors"
    if not index.exists():
        if not single.exists() and any(folder.glob(f"{stem}-*-of-*.safetensors")):
            raise UserError(f"{index}: is missing, though parts that it lists are here; {_AGAIN}")
        return read_safetensors(single)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(_is_plain(place) for place in places.values()):
        raise UserError(f"{index}: weight_map: should name a file in its folder for each tensor; {_AGAIN}")
    files = sorted(set(places.values()))
    if lost := [name for name in files if not (folder / name).exists()]:
        raise UserError(f"{folder}: lacks {len(lost)} of {len(files)} files ({_first(lost)}); {_AGAIN}")
    tensors: dict[str, Stored] = {}
    for name in files:
        held = read_safetensors(folder / name)
        if wrong := sorted(held.keys() ^ {tensor for tensor, place in places.items() if place == name}):
            raise UserError(f"{folder / name}: does not hold what {index.name} says ({_first(wrong)}); {_AGAIN}")
        tensors |= held
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError when it is missing or is not one."""
    try:
        with reading(path):
            value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({_short(error)}); {_AGAIN}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: should hold a JSON object, not {type(value).__name__}; {_AGAIN}")
    return value


def stored_state(state: Mapping[Any, Any], where: str) -> dict[str, Stored]:
    """A state dict as tensors that are loaded already, or mapped.

    Raises UserError, naming ``where``, for entries that are no dense tensors of floating-point weights.
    """
    for name, value in state.items():
        plain = type(value) in (Tensor, Parameter) and value.layout is torch.strided and value.device.type == "cpu"
        if not plain:
            raise UserError(f"{where}: {name} is not a dense tensor but {type(value).__name__}; save the weights alone")
        _require_plain(name, value.dtype, where)
    return {name: Stored(tuple(value.shape), value.dtype, value.detach) for name, value in state.items()}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn every error of the operating system in the body into a UserError naming the file, or ``path``."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such file; {_AGAIN}") from None
    except OSError as error:
        reason = error.strerror or _short(error)
        raise UserError(
            f"{error.filename or path}: cannot be read ({reason}); fix that or name another place"
        ) from None


def _require_plain(name: object, dtype: object, where: str) -> None:
    """Raise UserError unless a tensor's name is printable and its type is one that weights have."""
    if not isinstance(name, str) or not name.isprintable():
        raise UserError(f"{where}: holds a tensor named {name!r}; name a checkpoint of Wan")
    if dtype not in _TYPES.values():
        raise UserError(f"{where}: {name} is of type {dtype}; take a checkpoint in {', '.join(_TYPES)}")


def _read_torch(path: Path, mapped: bool) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        what = f" ({wanted[1]})" if wanted else ""
        raise UserError(
            f"{path}: holds more than tensors{what}, and code of a checkpoint is never run; "
            "save its state dict alone with torch.save"
        ) from None
    except Exception as error:  # torch raises any kind on a file that anybody may have written
        raise UserError(f"{path}: is truncated or damaged ({_short(error)}); {_AGAIN}") from None


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
