"""torch's Muon on any processor, and for matrices sharded by rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hiar.io.cpu import multiplies_bf16
from hiar.training.parallel import dealt_as, local, whole

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


class Muon(torch.optim.Muon):
    """torch's Muon, which orthogonalises in bf16, at the speed of fp32 on a processor that lacks bf16 arithmetic."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient."""
        with nullcontext() if multiplies_bf16() else _InSinglePrecision():
            super().step(closure)


class ShardedMuon(Muon):
    """Muon for sharded matrices: gathered one after another and updated whole, after which each process keeps its rows.

    Orthogonalisation needs the whole matrix: its parts would give other updates.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all matrices that have a gradient; all processes take it together."""
        assert closure is None
        for group in self.param_groups:
            settings = {name: value for name, value in group.items() if name in self.defaults}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, whole(parameter.grad), settings)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, settings: dict[str, Any]) -> None:
        state = self.state[parameter]
        momentum = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
        matrix = nn.Parameter(whole(parameter))
        matrix.grad = gradient
        muon = Muon([matrix], **settings)
        muon.state[matrix]["momentum_buffer"] = buffer = whole(momentum)
        muon.step()
        for held, new in ((parameter, matrix), (momentum, buffer)):
            local(held).copy_(local(dealt_as(new.detach(), held)))


class _InSinglePrecision(TorchDispatchMode):
    """Computes products of bf16 matrices on a CPU in fp32 and rounds once, as a kernel for bf16 does.

    Without such a kernel torch multiplies element by element: 1 GFLOP/s where fp32 has 70 (two cores with AVX2).
    """

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation in PRODUCTS and all(a.dtype == torch.bfloat16 and a.device.type == "cpu" for a in args):
            return operation(*(a.float() for a in args), **kwargs).bfloat16()
        return operation(*args, **kwargs)
