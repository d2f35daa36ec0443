"""Networks of a base model's folder: loaded only when every weight is there and none is left over."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from diffusers.utils import logging as diffusers_logging
from torch import nn

from hiar.errors import UserError

SHOWN = 200  # characters of a library's message


class _Pretrained(Protocol):
    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> Any: ...


Model = TypeVar("Model", bound=nn.Module)


def load_pretrained(kind: type[Model], folder: Path, **options: Any) -> Model:
    """A network of diffusers or transformers, frozen, from safetensors in a folder that its ``save_pretrained`` wrote.

    Both libraries only warn about missing weights, which they draw at random, and about surplus ones.
    Raises UserError when the folder is missing or broken, or its weights are not exactly the network's, by name and
    shape.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a Wan2.1 base model in diffusers' layout")
    loader: type[_Pretrained] = kind  # type: ignore[assignment]
    try:
        with quiet():
            model, info = loader.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
            )
        for what in ("missing", "unexpected", "mismatched"):
            if keys := sorted(map(str, info[f"{what}_keys"])):
                more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
                raise ValueError(f"{what} weights: {', '.join(keys[:3])}{more}")
    except Exception as error:  # the libraries raise any kind on files that anybody may have written
        reason = " ".join(str(error).split())[:SHOWN]
        raise UserError(
            f"{folder}: cannot be loaded ({reason}); it is incomplete, truncated or of another model; copy it again"
        ) from None
    network: Model = model
    return network.eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the log lines, warnings and progress bars of diffusers and transformers."""
    loggers: list[Any] = [diffusers_logging]
    if sys.modules.get("transformers"):
        from transformers.utils import logging as transformers_logging

        loggers.append(transformers_logging)
    before = [(logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    for logger in loggers:
        logger.set_verbosity(logger.CRITICAL)  # errors come as exceptions
        logger.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, (verbosity, bar) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if bar:
                logger.enable_progress_bar()
