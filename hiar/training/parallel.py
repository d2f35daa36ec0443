"""Training over several processes, which share the samples of a batch and the weights of networks (FSDP2).

A batch is cut into micro-batches, which processes take in turn. Every draw belongs to the batch or to a sample, and the
gradients of a micro-batch are complete before they are added to others': the number of processes changes nothing but
rounding, and one process that takes two micro-batches ends with the bits of two that take one each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hiar.errors import UserError
from hiar.io.process_group import Ranks
from hiar.models.loading import cast_weights
from hiar.models.sharded import allow_inside, inside

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

Metrics = dict[str, float]
Measured = dict[str, Tensor]  # of a micro-batch: still on the device, so that the host does not wait for them


def deal(batch: int, micro_batch: int | None, ranks: Ranks) -> list[range]:
    """The micro-batches of this process, as indices in the batch; without a ``micro_batch`` size, its share is one.

    Raises UserError when processes cannot take equally many.
    """
    size = micro_batch or batch // ranks.size
    if size == 0 or batch % (size * ranks.size):
        cut = f"in micro-batches of {micro_batch} " if micro_batch else ""
        raise UserError(
            f"a batch of {batch} {cut}cannot be split equally over {ranks.size} processes; start another number of "
            "processes, or change the batch in params.yaml"
        )
    starts = range(ranks.rank * size, batch, size * ranks.size)
    return [range(start, start + size) for start in starts]


def accumulate(
    network: nn.Module,
    parts: list[range],
    loss_of: Callable[[range], tuple[Tensor, Measured]],
    ranks: Ranks,
    accelerator: Accelerator,
) -> Measured:
    """Add the gradients of a batch's loss, the mean over the micro-batches of all processes; returns mean metrics.

    loss_of(part): loss, a mean over the samples at these indices of the batch, and its metrics.
    """
    count = len(parts) * ranks.size
    turns = []
    for part in parts:
        loss, metrics = loss_of(part)
        _backward(network, loss / count, accelerator)
        turns.append(torch.stack([value.detach().double() for value in metrics.values()]))
    own = torch.stack(turns).sum(0)
    return dict(zip(metrics, (ranks.gather(own).sum(0) / count).unbind(), strict=True))


def read(measured: Measured) -> Metrics:
    """The metrics as Python numbers; the host waits for a GPU once, for all of them."""
    values = torch.stack([value.double() for value in measured.values()]).tolist()
    return dict(zip(measured, values, strict=True))


def rows_of_all(parts: list[Tensor], ranks: Ranks) -> Tensor:
    """The rows of all processes' micro-batches, in the order of the batch."""
    return ranks.gather(torch.stack(parts)).transpose(0, 1).flatten(0, 2)


def shard(network: nn.Module, ranks: Ranks, *, offload: bool = False, dtype: torch.dtype | None = None) -> None:
    """Shard a network's weights over the processes; the layers of a transformer block are gathered together.

    offload: shards lie in the host's memory, and are copied to the device when they are gathered. dtype: of the
    weights, except those that Wan keeps in full precision; they are cast block by block, as they are moved to the
    device.

    Reductions are in full precision, as are shards without a ``dtype``. For computing in half precision, layers are
    gathered in it. What Wan keeps in full precision is outside these layers, and is gathered with the rest of the
    network. Inputs are not cast: timesteps in half precision are other timesteps.
    """
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    # Outputs that are views are safe here: nothing writes into them.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    full = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Pinned memory is copied at the bus's speed and, with several processes, while earlier layers are computed.
    place = CPUOffloadPolicy(pin_memory=ranks.device.type == "cuda") if offload else OffloadPolicy()
    of_layers = replace(full, param_dtype=torch.bfloat16 if ranks.half else None)
    for part in parts_of(network):
        blocks = getattr(getattr(part, "transformer", None), "blocks", ())
        for unit, policy in (*((layers_of(block), of_layers) for block in blocks), ([part], full)):
            if dtype is not None:
                for module in unit:
                    cast_weights(module, dtype)
            fully_shard(unit, mesh=ranks.mesh, reshard_after_forward=True, mp_policy=policy, offload_policy=place)
            sharded = cast(FSDPModule, unit[0])
            # A sum: losses are divided by the number of all micro-batches already.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)
            for module in unit:
                allow_inside(module)


def layers_of(block: nn.Module) -> list[nn.Module]:
    """Nearly all of a Wan block: what is left are a norm and a table, which stay in full precision."""
    return [block.attn1, block.attn2, block.ffn]  # type: ignore[list-item]


def parts_of(network: nn.Module) -> list[nn.Module]:
    """The networks within, each of which has its own forward."""
    return list(network.children()) if isinstance(network, nn.ModuleDict) else [network]


def whole(tensor: Tensor) -> Tensor:
    """A weight, gathered if it is sharded; all processes call this together."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shares(tensor: Tensor) -> list[int] | None:
    """How many rows of a weight each process holds, in rank order; None if it is not sharded."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(tensor, DTensor):
        return None
    assert tensor.placements == (Shard(0),)
    count, size = len(tensor), tensor.device_mesh.size()
    most = -(-count // size)
    return [max(0, min(most, count - rank * most)) for rank in range(size)]


def rows_of(tensor: Tensor) -> range | None:
    """Which rows of a weight this process holds; None if it is not sharded."""
    from torch.distributed.tensor import DTensor

    counts = shares(tensor)
    if counts is None:
        return None
    rank = cast(DTensor, tensor).device_mesh.get_local_rank()
    first = sum(counts[:rank])
    return range(first, first + counts[rank])


def part_of(like: Tensor, rows: Tensor) -> Tensor:
    """A tensor sharded as ``like`` is, of which this process has ``rows``; just these if ``like`` is not sharded."""
    from torch.distributed.tensor import DTensor

    if not isinstance(like, DTensor):
        return rows
    mesh, places = like.device_mesh, like.placements
    return DTensor.from_local(
        rows.to(like.device), mesh, places, run_check=False, shape=like.shape, stride=like.stride()
    )


def dealt_as(value: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor that all processes have as ``like`` is: each keeps its part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def clip_sharded(parameters: Iterable[Tensor], limit: float) -> Tensor | None:
    """Clip gradients to a norm, and return the norm before; None where nothing is sharded.

    The norm is that of whole gradients, one after another: sums over shards would round differently for each number of
    processes.
    """
    from torch.distributed.tensor import DTensor

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(isinstance(gradient, DTensor) for gradient in gradients):
        return None
    norm = torch.stack([torch.linalg.vector_norm(whole(gradient)) for gradient in gradients]).norm()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        local(gradient).mul_(factor)
    return norm


def _backward(network: nn.Module, loss: Tensor, accelerator: Accelerator) -> None:
    """Backward of a micro-batch; if the network is sharded, its gradients are reduced once, when they are complete.

    A rollout calls each block of the network many times. If gradients were reduced at each call, those of two processes
    would be added in another order than those of two micro-batches.
    """
    sharded = [cast("FSDPModule", part) for part in parts_of(network) if hasattr(part, "set_requires_gradient_sync")]
    for part in sharded:
        part.set_requires_gradient_sync(False)
    accelerator.backward(loss)
    for part in sharded:
        part.set_requires_gradient_sync(True)
        # At the end of any backward, FSDP reduces what has been accumulated, also in units that took no part in it.
        inside(cast(nn.Module, part), _nothing).backward()


def _nothing(part: nn.Module) -> Tensor:
    device = local(next(part.parameters())).device
    return torch.zeros((), device=device, requires_grad=True) * 1
