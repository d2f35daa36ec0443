"""Networks in training, as the runtime's settings have them."""

from __future__ import annotations

from torch import nn

from hiar.config import Optimizer
from hiar.stages.common import Stage
from hiar.training.role import Role, make_role


def new_role(work: Stage, network: nn.Module, settings: Optimizer, steps: int) -> Role:
    """A network that a stage trains, over all its processes, with its optimisers where `runtime.offload` has them."""
    return make_role(network, settings, steps, work.ranks, offloaded="optimizers" in work.params.runtime.offload)
