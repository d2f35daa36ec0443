"""Low-rank updates of a transformer (LoRA, arXiv 2106.09685), as peft saves them, merged into its weights.

For a linear layer with weight W (out, in), an adapter trains A (rank, in) and B (out, rank): the layer's weight becomes
W + scale B A, where scale is the adapter's alpha over its rank, which such a file does not contain.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from hiar.errors import UserError
from hiar.worlds.wan.formats import names
from hiar.worlds.wan.formats.checking import SHOWN
from hiar.worlds.wan.formats.stored import Stored, read_file, stored_state

ENTRIES = ("generator_lora", "lora", "model")  # of a .pt that holds more than the adapter
_WRAPPERS = re.compile(r"(?:^|\.)(base_model|default|transformer)(?=\.)")  # peft's own, and diffusers' in its files
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")


def add_lora(tensors: Mapping[str, Stored], path: Path, scale: float) -> dict[str, Stored]:
    """The tensors of a transformer by diffusers' names, with an adapter added to each when it is loaded.

    It is added in float32 and rounded once, to the weight's stored type.
    Raises UserError when the file is not peft's, lacks half of an update, or belongs to another transformer.
    """
    factors = _factors(path)
    added = dict(tensors)
    for name, (a, b) in factors.items():
        if name not in tensors:
            raise UserError(
                f"{path}: {name}: is not a weight of the source's transformer; name the model it was trained on"
            )
        weight = tensors[name]
        if (b.shape[:1] + a.shape[1:], a.shape[0]) != (weight.shape, b.shape[1]):
            shapes = f"lora_A {list(a.shape)} and lora_B {list(b.shape)} for a weight {list(weight.shape)}"
            raise UserError(f"{path}: {name}: {shapes}; name the model it was trained on")
        added[name] = Stored(weight.shape, weight.dtype, partial(_sum, weight, a, b, scale))
    return added


def _sum(weight: Stored, a: Stored, b: Stored, scale: float) -> Tensor:
    update = b.load().float() @ a.load().float()
    return weight.load().float().add(update, alpha=scale).to(weight.dtype)


def _factors(path: Path) -> dict[str, tuple[Stored, Stored]]:
    """A and B of an adapter, by diffusers' names of the weights that they update."""
    held = read_file(path)
    if isinstance(held, Mapping) and not any(isinstance(value, Stored) for value in held.values()):
        held = stored_state(_state(held), str(path))
    halves: dict[str, dict[str, Stored]] = {}
    for bare, found in names.unwrap(held, str(path)).items():
        parts = _FACTOR.fullmatch(_WRAPPERS.sub("", bare).lstrip("."))
        if parts is None:
            raise UserError(f"{path}: holds {found}, which is not peft's lora_A or lora_B; save the adapter with peft")
        layer = f"{parts[1]}.weight"
        halves.setdefault(names.to_diffusers(layer) or layer, {})[parts[2]] = held[found]
    if half := [name for name, pair in halves.items() if len(pair) < 2]:
        raise UserError(f"{path}: has only one of lora_A and lora_B of {', '.join(half[:SHOWN])}; copy it again")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}


def _state(held: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The adapter in a .pt, which may hold it under one of ENTRIES."""
    return next((held[name] for name in ENTRIES if isinstance(held.get(name), Mapping)), held)
