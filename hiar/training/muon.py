"""Muon for matrices that are sharded by rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hiar.training.parallel import dealt_as, local, whole


class ShardedMuon(torch.optim.Muon):
    """torch's Muon on whole matrices, one after another, of whose update each process keeps its rows.

    What is orthogonalised is a whole matrix: its parts would give other updates.
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
        muon = torch.optim.Muon([matrix], **settings)
        muon.state[matrix]["momentum_buffer"] = buffer = whole(momentum)
        muon.step()
        for held, new in ((parameter, matrix), (momentum, buffer)):
            local(held).copy_(local(dealt_as(new.detach(), held)))
