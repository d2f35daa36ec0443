"""Networks in training, set up as the runtime's settings say."""

from __future__ import annotations

from torch import nn

from hiar.config import Optimizer
from hiar.stages.common import Stage
from hiar.training.role import Role, make_role


def new_role(work: Stage, network: nn.Module, settings: Optimizer, steps: int) -> Role:
    """The role of a network that a stage trains on all processes, its optimisers' states as `runtime.offload` says."""
    return make_role(network, settings, steps, work.ranks, offloaded="optimizers" in work.params.runtime.offload)
