"""Loading networks from untrusted folders: whole, of the right shape and finite, or one line of error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.utils import logging
from torch import nn

from hiar.errors import UserError
from hiar.models.finite import require_finite

Model = TypeVar("Model", bound=ModelMixin)


def load_model(kind: type[Model], folder: Path) -> Model:
    """Load a diffusers model saved by save_pretrained; whatever fails becomes one line of error.

    diffusers only warns about missing weights, and initialises them at random.
    """
    try:
        with _no_warnings():
            model, info = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        for name in ("missing_keys", "unexpected_keys"):
            if info[name]:
                raise ValueError(f"{name.replace('_keys', '')} weights: {', '.join(sorted(info[name]))}")
    except Exception as error:  # whatever a library raises on untrusted files
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: cannot be loaded ({reason}); "
            "the checkpoint is missing, truncated or of another shape; make it again"
        ) from None
    require_finite(model.state_dict(), str(folder))
    return model


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast the weights of a transformer, or of a part of one, except those that Wan keeps in full precision."""
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    for name, parameter in network.named_parameters():
        if parameter.dtype != dtype and not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence diffusers and warnings; errors are still logged."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(verbosity)
