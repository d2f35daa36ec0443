"""Sharded weights in use outside the forward of the module that has them."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


def inside(module: nn.Module, function: Callable[..., T], *arguments: Any) -> T:
    """Run ``function(module, *arguments)`` as a forward of ``module``: if it is sharded, its own weights are gathered.

    For code that uses a module's layers in another way than its forward. The result is a tensor or a tuple of tensors.
    """
    registered = getattr(module, "run_inside", None)
    return function(module, *arguments) if registered is None else registered(function, *arguments)


def allow_inside(module: nn.Module) -> None:
    """Prepare a sharded module for `inside`."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    module.run_inside = MethodType(_run, module)  # type: ignore[assignment]
    register_fsdp_forward_method(module, "run_inside")


def _run(module: nn.Module, function: Callable[..., T], *arguments: Any) -> T:
    return function(module, *arguments)
