"""A Wan transformer in any of the usual layouts, opened without reading its weights and checked to be complete.

A SOURCE is a diffusers folder (of the pipeline, or its transformer/), an original Wan folder, a single .safetensors
file with either's names, or a .pt of the students' training codes, which holds a ``generator``, its running average
``generator_ema``, or both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from hiar.errors import UserError
from hiar.worlds.wan.formats import names
from hiar.worlds.wan.formats.checking import SHOWN, require_exact, transformer_shapes
from hiar.worlds.wan.formats.configs import Config, checked, is_original_config, read_config, settle
from hiar.worlds.wan.formats.stored import Stored, read_file, read_json, read_sharded, reading, stored_state

STEM = "diffusion_pytorch_model"  # of the transformer's files in both layouts, and of the autoencoder's in diffusers'
CONFIG = "config.json"

Kind = Literal["diffusers", "wan", "safetensors", "pt"]
Weights = Literal["generator", "generator_ema"]


@dataclass(frozen=True)
class Found:
    """A model in a file or folder: its configuration, and its tensors by diffusers' names."""

    kind: Kind
    config: Config
    tensors: Mapping[str, Stored]


def open_source(path: Path, *, weights: Weights | None = None, base: Mapping[str, Any] | None = None) -> Found:
    """The transformer of a SOURCE, with exactly the tensors of its configuration.

    weights: which set of a .pt; None takes the only one. base: the configuration of a transformer of the same size;
    needed where the source has no config.json and its heads are not 128 wide.
    Raises UserError when there is no transformer, its layout is unknown, it is incomplete, or not of the base's size.
    """
    base = None if base is None else checked(base, "base")
    with reading(path):
        folder = path.is_dir()
    if folder:
        if weights is not None:
            raise UserError(f"weights = {weights}: {path} is a folder, which holds one set of weights; leave it out")
        return _open_folder(path, base)
    held = read_file(path)
    if _is_safetensors(held):
        if weights is not None:
            raise UserError(f"weights = {weights}: {path} is safetensors, which holds one set of weights; leave it out")
        return _found("safetensors", held, str(path), None, base)
    chosen, entry = _choose(held, str(path), weights)
    return _found("pt", stored_state(chosen, entry), entry, None, base)


def weights_in(path: Path) -> list[Weights]:
    """The sets of weights in a .pt; [] for others, which have just one. Raises UserError for a .pt without any."""
    with reading(path):
        if path.is_dir():
            return []
    held = read_file(path)
    return [] if _is_safetensors(held) else list(_sets(_entries(held, str(path)), str(path)))


def _open_folder(folder: Path, base: Config | None) -> Found:
    if (folder / "transformer_2").is_dir():
        raise UserError(
            f"{folder}: has two transformers; name {folder / 'transformer'} or {folder / 'transformer_2'} itself"
        )
    if (folder / "transformer" / CONFIG).exists():
        folder = folder / "transformer"
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{folder}: is neither a folder of diffusers (transformer/{CONFIG}) nor of the original Wan ({CONFIG}); "
            "name such a folder, a .safetensors or a .pt"
        )
    kind: Kind = "wan" if is_original_config(read_json(folder / CONFIG)) else "diffusers"
    return _found(kind, read_sharded(folder, STEM), str(folder), folder / CONFIG, base)


def _found(kind: Kind, held: Mapping[str, Stored], where: str, config: Path | None, base: Config | None) -> Found:
    """The tensors by diffusers' names, checked against the configuration from config.json, base and shapes."""
    bare = names.unwrap(held, where)
    original = names.is_original(bare)
    tensors = {(original and names.to_diffusers(name)) or name: held[as_found] for name, as_found in bare.items()}
    known = {name: one.shape for name, one in tensors.items() if names.to_original(name) is not None}
    if not known:
        raise UserError(
            f"{where}: holds no transformer of Wan (but {', '.join(list(held)[:SHOWN])}); name a checkpoint that does"
        )
    settled = settle(known, where, None if config is None else read_config(config, known), base)
    shapes = {name: one.shape for name, one in tensors.items()}
    spelled = (lambda name: names.to_original(name) or name) if original else str
    require_exact(shapes, transformer_shapes(settled), where, spelled)
    return Found(kind, settled, tensors)


def _is_safetensors(held: Any) -> bool:
    return isinstance(held, dict) and bool(held) and all(isinstance(value, Stored) for value in held.values())


def _choose(held: Any, path: str, weights: Weights | None) -> tuple[Mapping[str, Any], str]:
    """The requested state dict of a .pt, and its name in errors."""
    entries = _entries(held, path)
    found = _sets(entries, path)
    if weights is None and len(found) > 1:
        raise UserError(
            f"{path}: holds {_named(entries)}: several sets of weights; choose weights = {' or '.join(found)}"
        )
    asked = weights or next(iter(found))
    if asked not in found:
        raise UserError(f"{path}: weights = {asked}: it holds {_named(entries)}; choose weights = {' or '.join(found)}")
    return entries[found[asked]], f"{path}: {found[asked]}"


def _entries(held: Any, path: str) -> Mapping[Any, Any]:
    """The entries of a .pt, by name; a bare state dict counts as ``model``."""
    if not isinstance(held, Mapping) or not held:
        raise UserError(f"{path}: holds {type(held).__name__}, not state dicts; name a checkpoint of a generator")
    return {"model": held} if all(isinstance(value, Tensor) for value in held.values()) else held


def _sets(entries: Mapping[Any, Any], path: str) -> dict[Weights, str]:
    """The entry of a .pt that holds each set of weights; ``model`` is the generator."""
    called: dict[str, Weights] = {"model": "generator", "generator": "generator", "generator_ema": "generator_ema"}
    found = {
        weights: entry
        for entry, weights in called.items()
        if isinstance(entries.get(entry), Mapping) and entries[entry]
    }
    if not found:
        raise UserError(f"{path}: holds {_named(entries)}, but no generator; name a checkpoint of a generator")
    return found


def _named(entries: Mapping[Any, Any]) -> str:
    return ", ".join([name if isinstance(name, str) and name.isprintable() else repr(name) for name in entries][:SHOWN])
