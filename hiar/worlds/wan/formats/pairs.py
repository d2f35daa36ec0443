"""Others' ODE pairs: HiAR's folder of ``{prompt: trajectory}`` files and Self-Forcing's LMDB, one pair at a time.

Both hold a trajectory's states from pure noise to clean, each (F, C, h, w); ours are (C, F, h, w). Clean videos, as in
CausVid and Causal-Forcing, have one state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.worlds.wan.formats.stored import read_file, reading

if TYPE_CHECKING:
    import lmdb

DATA = "data.mdb"  # in the folder of an LMDB
AXES = "states, frames, channels, height, width"
TYPES = (torch.float16, torch.bfloat16, torch.float32)


class ForeignPair(NamedTuple):
    """states: (S + 1, C, F, h, w), from pure noise to clean. where: its source, for messages."""

    where: str
    prompt: str
    states: Tensor


def foreign_pairs(source: Path) -> Iterator[ForeignPair]:
    """The pairs in a folder of .pt files, in the order of their names, or in an LMDB.

    Raises UserError when there is none, or at the first that is damaged, not finite, or of another shape or type than
    the first one. No code in a file is run. One pair of an LMDB is in memory at a time; .pt files are memory-mapped.
    """
    is_lmdb = source.name == DATA or (source / DATA).exists()
    first: ForeignPair | None = None
    for pair in _of_lmdb(source) if is_lmdb else _of_files(source):
        first = first or pair
        found, wanted = (f"{one.states.dtype} {tuple(one.states.shape)}" for one in (pair, first))
        if found != wanted:
            raise UserError(f"{pair.where}: is {found}, and {first.where} is {wanted}; import pairs of one kind")
        if not pair.states.isfinite().all():
            raise UserError(f"{pair.where}: has states that are not finite; remove it")
        yield pair


def _of_files(folder: Path) -> Iterator[ForeignPair]:
    if not folder.is_dir():
        raise UserError(f"{folder}: is neither a folder of .pt files nor an LMDB; name one")
    paths = sorted(folder.glob("*.pt"))
    if not paths:
        raise UserError(f"{folder}: holds no .pt file and no {DATA}; name a folder of pairs")
    for path in paths:
        held = read_file(path)
        if not isinstance(held, dict) or not held:
            raise UserError(f"{path}: should hold a dictionary of prompts and trajectories; name a folder of pairs")
        for prompt, value in held.items():
            where = f"{path}: {prompt!r:.60}"
            if not isinstance(prompt, str) or not isinstance(value, Tensor):
                raise UserError(f"{where}: should be a prompt with a trajectory, not {type(value).__name__}; remove it")
            if value.ndim != 6 or value.shape[0] != 1:
                raise UserError(f"{where}: has the shape {tuple(value.shape)}, not (1, {AXES}); name a folder of pairs")
            yield ForeignPair(where, prompt, _ours(where, value[0]))


def _of_lmdb(path: Path) -> Iterator[ForeignPair]:
    """Rows ``latents_N_data`` (fp16) and ``prompts_N_data``, whose number is the first in ``latents_shape``."""
    with _opened(path) as environment, environment.begin(buffers=True) as rows:
        count, *shape = _shape(path, bytes(rows.get(b"latents_shape", b"")))
        size = math.prod(shape)
        for number in range(count):
            where = f"{path}: latents_{number}_data"
            latents = rows.get(f"latents_{number}_data".encode())
            prompt = rows.get(f"prompts_{number}_data".encode())
            if latents is None or prompt is None:
                raise UserError(f"{where}: it or its prompt is missing, of {count} pairs; copy the LMDB again")
            if len(latents) != 2 * size:
                raise UserError(
                    f"{where}: has {len(latents)} bytes, {tuple(shape)} in fp16 takes {2 * size}; copy it again"
                )
            states = torch.frombuffer(bytearray(latents), dtype=torch.float16).reshape(shape)
            yield ForeignPair(where, _text(where, bytes(prompt)), _ours(where, states))


def library() -> ModuleType:
    """The module lmdb. Raises UserError when it is not installed."""
    try:
        return import_module("lmdb")
    except ImportError:
        raise UserError(
            "lmdb: is not installed, and reading or writing an LMDB needs it; in the project, pip install '.[wan]'"
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[lmdb.Environment]:
    """Open an LMDB for reading. Its library trusts the mapped file, so a truncated one is refused here."""
    lmdb = library()
    file = path / DATA if path.is_dir() else path
    try:
        with (
            reading(file),
            lmdb.open(str(file), subdir=False, readonly=True, lock=False, create=False, readahead=False) as environment,
        ):
            needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if file.stat().st_size < needed:
                raise UserError(f"{file}: is truncated ({file.stat().st_size} of {needed} bytes); copy it again")
            yield environment
    except lmdb.Error as error:
        raise UserError(f"{file}: is damaged or not an LMDB ({error}); copy it again") from None


def _shape(path: Path, text: bytes) -> list[int]:
    """The numbers of ``latents_shape``: pairs, then the shape of one. Five mean clean videos, of one state each."""
    numbers = [int(word) for word in text.split() if word.isdigit() and len(word) < 10]
    if len(numbers) not in {5, 6} or len(text.split()) != len(numbers) or 0 in numbers:
        raise UserError(
            f"{path}: latents_shape = {text[:60]!r}: should be six numbers (pairs, {AXES}), or five without states; "
            "copy it again"
        )
    return [numbers[0], *[1] * (6 - len(numbers)), *numbers[1:]]


def _text(where: str, prompt: bytes) -> str:
    try:
        return prompt.decode()
    except UnicodeDecodeError:
        raise UserError(f"{where}: its prompt is not UTF-8; copy the LMDB again") from None


def _ours(where: str, states: Tensor) -> Tensor:
    if states.dtype not in TYPES:
        raise UserError(f"{where}: is of type {states.dtype}; give fp16, bf16 or fp32")
    return states.transpose(1, 2)
