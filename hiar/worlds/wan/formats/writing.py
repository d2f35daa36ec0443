"""Writing a transformer for others: in diffusers' layout, the original's, and that of the training codes.

Tensors keep type and bits. Files appear by rename when complete, with the permissions of the user's umask.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor

from hiar.io.files import atomic_file, write_json
from hiar.io.free import require_room
from hiar.io.progress import Progress
from hiar.models.finite import require_finite
from hiar.worlds.wan.formats.configs import original_config
from hiar.worlds.wan.formats.names import to_original
from hiar.worlds.wan.formats.sources import CONFIG, STEM
from hiar.worlds.wan.formats.stored import INDEX, Stored

if TYPE_CHECKING:
    from typing_extensions import Buffer

SHARD = 5_000_000_000  # bytes of a file, at most: as much is in memory at a time
_MB = 1_000_000


def write_diffusers(tensors: Mapping[str, Stored], config: Mapping[str, Any], folder: Path, shard: int = SHARD) -> None:
    """Write diffusers' ``transformer`` folder into an existing empty one.

    tensors: by diffusers' names. Raises UserError as `write_model` does.
    """
    head = {"_class_name": "WanTransformer3DModel", "_diffusers_version": diffusers.__version__}
    write_model(tensors, {**head, **config}, folder, STEM, shard)


def write_original(tensors: Mapping[str, Stored], config: Mapping[str, Any], folder: Path, shard: int = SHARD) -> None:
    """Write the transformer's part of the original layout into an existing empty folder.

    tensors: by diffusers' names. Raises UserError as `write_model` does.
    """
    write_model(_originals(tensors), original_config(config), folder, STEM, shard)


def write_model(
    tensors: Mapping[str, Stored], config: Mapping[str, Any], folder: Path, stem: str, shard: int = SHARD
) -> None:
    """Write config.json and safetensors: ``stem``.safetensors, or several of ``shard`` bytes at most and their index.

    One file's tensors are in memory at a time. Raises UserError when the disk is too full (nothing is then written),
    the files cannot be written, or a weight is not finite (the folder is then incomplete).
    """
    total = sum(one.nbytes for one in tensors.values())
    require_room(folder, total)
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda one: one.nbytes,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=shard,
    )
    with _progress(folder, total) as progress:
        for name, held in split.filename_to_tensors.items():
            values = {}
            for key in held:
                # A copy: contiguous and in a storage of its own, as safetensors requires.
                values[key] = tensors[key].load().clone(memory_format=torch.contiguous_format)
                require_finite({key: values[key]}, str(folder))
                progress.count(tensors[key].nbytes)
            with atomic_file(folder / name) as temporary:
                save_file(values, temporary, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": {"total_size": total}, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{stem}{INDEX}", index)
    write_json(folder / CONFIG, config)


def write_student(sets: Mapping[str, Mapping[str, Stored]], path: Path) -> None:
    """Write the ``.pt`` that Self-Forcing and its successors load: original names with the prefix ``model.``.

    sets: ``generator`` and, where there is one, ``generator_ema``, by diffusers' names.
    Raises UserError when the disk is too full, the file cannot be written, or a weight is not finite; nothing is then
    written.
    """
    distinct = {id(tensors): tensors for tensors in sets.values()}.values()  # one set may be both
    total = sum(one.nbytes for tensors in distinct for one in tensors.values())
    require_room(path.parent, total)
    states: dict[str, dict[str, Tensor]] = {}
    for entry, tensors in sets.items():
        if same := [other for other in states if sets[other] is tensors]:
            states[entry] = states[same[0]]  # torch writes shared memory once
            continue
        states[entry] = {f"model.{name}": _packed(one.load()) for name, one in _originals(tensors).items()}
        require_finite(states[entry], f"{path}: {entry}")
    with (
        atomic_file(path) as temporary,
        _progress(path, total) as progress,
        io.BufferedWriter(_Counted(temporary, progress)) as file,
    ):
        try:
            torch.save(states, file)
        except RuntimeError as error:  # torch's own, which hides the system's
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


class _Megabytes(Progress):
    """Progress shown in whole megabytes and counted in bytes."""

    bytes = 0

    def count(self, nbytes: int) -> None:
        self.bytes += nbytes
        self.advance(min(-(-self.bytes // _MB), self.total or 0) - self.done)


class _Counted(io.FileIO):
    """A file that reports the bytes written to it."""

    def __init__(self, path: Path, progress: _Megabytes) -> None:
        super().__init__(path, "wb")
        self.progress = progress

    def write(self, part: Buffer) -> int:
        written = super().write(part)
        self.progress.count(written)
        return written


def _progress(place: Path, nbytes: int) -> _Megabytes:
    return _Megabytes(f"writing {place.name}", -(-nbytes // _MB), unit="MB")


def _originals(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    renamed = {to_original(name): one for name, one in tensors.items()}
    return {name: one for name, one in renamed.items() if name is not None}


def _packed(tensor: Tensor) -> Tensor:
    """The tensor in a storage of its own: of a view, torch saves the whole storage."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
