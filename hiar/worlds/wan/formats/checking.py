"""Whether tensors are exactly those of a model: diffusers and torch accept missing and surplus ones, we do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from hiar.errors import UserError
from hiar.worlds.wan.formats.configs import Shapes

SHOWN = 5  # names in an error line


def transformer_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a transformer, by diffusers' names; no weights are allocated."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def require_exact(found: Shapes, wanted: Shapes, where: str, spelled: Callable[[str], str] = str) -> None:
    """Raise UserError, naming ``where``, unless names and shapes are those wanted.

    The message counts the missing or surplus names and lists the first five, as ``spelled`` in the file.
    """
    for names, wrong, remedy in (
        ([name for name in wanted if name not in found], "lacks", "it is incomplete, copy or download it again"),
        ([name for name in found if name not in wanted], "has a surplus of", "name a checkpoint of the same model"),
    ):
        if names:
            first = ", ".join(spelled(name) for name in names[:SHOWN])
            more = ", ..." if len(names) > SHOWN else ""
            count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
            raise UserError(f"{where}: {wrong} {count} ({first}{more}); {remedy}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise UserError(
                f"{where}: {spelled(name)} = {_product(found[name])}: should be {_product(shape)}; "
                "name a checkpoint of the same model"
            )


def _product(shape: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in shape) or "a single number"
