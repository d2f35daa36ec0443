"""A network in training (teacher, student or critic) with its optimisers and its averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hiar import config
from hiar.io.process_group import ALONE, Ranks
from hiar.training.muon import Muon, ShardedMuon
from hiar.training.parallel import Measured, Metrics, accumulate, clip_sharded, local, read, shard, whole

HOST = torch.device("cpu")
# Moves averaged weights towards the current ones, given how many updates they average.
Average = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]


@dataclass
class Role:
    """A network in training. steps: updates that its learning-rate schedule spans. offloaded: see `make_role`."""

    module: nn.Module
    optimizers: list[torch.optim.Optimizer]
    average: AveragedModel | None
    settings: config.Optimizer
    steps: int
    offloaded: bool = False


def make_role(
    module: nn.Module, settings: config.Optimizer, steps: int, ranks: Ranks = ALONE, *, offloaded: bool = False
) -> Role:
    """Muon for the matrices of transformer blocks if set, AdamW for every other parameter (see config.Optimizer).

    ranks: the processes over which the network and its average are sharded, if they have a mesh. offloaded: between
    updates, the optimisers' states lie in the host's memory.
    """
    average = None
    if settings.ema is not None:
        average = AveragedModel(module).requires_grad_(False)
        average.multi_avg_fn = _averager(settings.ema, average if settings.ema_from == 0 else None)
    if ranks.mesh is not None:  # after the copy: a sharded network cannot be copied
        shard(module, ranks)
        if average is not None:
            shard(average.module, ranks)
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    matrices = [p for name, p in named if settings.muon and p.ndim == 2 and ".blocks." in f".{name}"]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    adamw, muon = settings.adamw, settings.muon
    optimizers: list[torch.optim.Optimizer] = []
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=adamw.lr, betas=adamw.betas, weight_decay=adamw.weight_decay))
    if matrices and muon:
        kind = Muon if ranks.mesh is None else ShardedMuon
        optimizers.append(kind(matrices, lr=muon.lr, weight_decay=muon.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return Role(module, optimizers, average, settings, steps, offloaded)


def learn(
    role: Role,
    step: int,
    parts: list[range],
    loss_of: Callable[[range], tuple[Tensor, Measured]],
    ranks: Ranks,
    accelerator: Accelerator,
) -> Metrics:
    """Update ``step`` of a role on a batch, of which this process takes the micro-batches ``parts``.

    loss_of(part): loss, a mean over the samples at these indices of the batch, and its metrics.
    Returns their means over the micro-batches of all processes, and ``grad_norm`` before clipping. The host waits for a
    GPU only at the end.
    """
    metrics = accumulate(role.module, parts, loss_of, ranks, accelerator)
    return read(metrics | {"grad_norm": update(role, step, accelerator)})


def update(role: Role, step: int, accelerator: Accelerator) -> Tensor:
    """Clip, take one optimiser step, clear the gradients, average the weights.

    Returns the gradient norm before clipping.
    """
    norm = clip_sharded(role.module.parameters(), role.settings.clip)
    if norm is None:
        norm = accelerator.clip_grad_norm_(role.module.parameters(), role.settings.clip)
        assert norm is not None  # accelerate has none only under launchers that training does not use
    factor = lr_factor(role.settings, step, role.steps)
    for optimizer in role.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        if role.offloaded:
            move_states(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if role.offloaded:
            move_states(optimizer, HOST)
    if role.average is not None and (step >= role.settings.ema_from or step == role.steps - 1):
        role.average.update_parameters(role.module)
    return norm


@torch.no_grad()
def move_states(optimizer: torch.optim.Optimizer, device: torch.device | None = None) -> None:
    """Move an optimiser's tensors to a device; None: to where their parameters are.

    Of sharded tensors, this process's part moves.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.ndim:  # counts of updates stay where they are
                state[name] = value.to(device or local(parameter).device)


def kept(role: Role) -> nn.Module:
    """The network to keep when training ends: the average, or the last weights where there is none."""
    return role.module if role.average is None else role.average.module


def kept_weights(role: Role) -> dict[str, Tensor]:
    """The state of the network to keep, gathered; all processes call this together."""
    return {name: whole(value).detach().cpu() for name, value in kept(role).state_dict().items()}


def lr_factor(settings: config.Optimizer, step: int, steps: int) -> float:
    """The learning rate of an update relative to its peak: linear warm-up, then constant or a cosine to zero."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    if settings.decay == "constant":
        return 1.0
    progress = (step - settings.warmup) / max(1, steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def _averager(decay: float, growing: AveragedModel | None) -> Average:
    """EMA; the decay of a ``growing`` one rises with the number of updates, up to ``decay``.

    Early weights of a training are so soon forgotten. An average that leaves them out has nothing to forget.
    """

    @torch.no_grad()
    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        memory = decay
        if growing is not None:
            count = int(growing.n_averaged)  # a number on the host: no GPU is waited for
            memory = min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_([local(a) for a in averaged], [local(c) for c in current], 1 - memory)

    return average
