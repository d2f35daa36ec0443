"""Weights that several processes hold a part of each, as the layers that use them see it."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


def inside(module: nn.Module, function: Callable[..., T], *arguments: Any) -> T:
    """``function(module, *arguments)`` as a forward of ``module``: where it is sharded, its own weights are whole.

    For what uses layers of a module otherwise than its forward does. The result is a tensor or a tuple of tensors.
    """
    registered = getattr(module, "run_inside", None)
    return function(module, *arguments) if registered is None else registered(function, *arguments)


def allow_inside(module: nn.Module) -> None:
    """Make a module that is sharded fit for `inside`."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    module.run_inside = MethodType(_run, module)  # type: ignore[assignment]
    register_fsdp_forward_method(module, "run_inside")


def _run(module: nn.Module, function: Callable[..., T], *arguments: Any) -> T:
    return function(module, *arguments)
