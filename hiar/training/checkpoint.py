"""The state of a training run in one file: safetensors with a checksum, whole or absent, enough for an exact resume.

All randomness of training is a function of the step, so there is no generator state to keep. What is sharded is saved
whole, so that a run may go on with another number of processes; the one that writes has room for all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiar.errors import UserError
from hiar.io.shards import STATE, read_shard, write_shard
from hiar.training.parallel import dealt_as, whole
from hiar.training.role import Role

PROGRESS = "progress"  # the entry that holds step and curve, as JSON in bytes


def save_state(
    folder: Path,
    step: int,
    roles: Mapping[str, Role],
    memory: Mapping[str, Tensor],
    curve: list[dict[str, float]],
    write: bool = True,
) -> None:
    """Keep the state after ``step`` updates, in the place of an older one.

    Processes that share the roles call this together, and one of them is to ``write``.
    """
    progress = json.dumps({"step": step, "curve": curve}).encode()
    tensors = {PROGRESS: torch.frombuffer(bytearray(progress), dtype=torch.uint8)}
    tensors |= {f"memory/{name}": value for name, value in memory.items()}
    for name, value in _entries(roles):
        together = whole(value)
        if write:  # one tensor at a time leaves the device
            tensors[name] = together.detach().cpu()
    if write:
        folder.mkdir(exist_ok=True)
        write_shard(folder / STATE, tensors, {})


def _entries(roles: Mapping[str, Role]) -> Iterator[tuple[str, Tensor]]:
    """What roles hold, in an order that is the same in all processes."""
    for name, role in roles.items():
        for key, value in role.module.state_dict().items():
            yield f"{name}/module/{key}", value
        if role.average is not None:
            for key, value in role.average.state_dict().items():
                yield f"{name}/average/{key}", value
        for index, optimizer in enumerate(role.optimizers):
            for parameter, state in sorted(optimizer.state_dict()["state"].items()):
                for key, value in state.items():
                    yield f"{name}/optimizer/{index}/{parameter}/{key}", value


def load_state(
    folder: Path, roles: Mapping[str, Role], memory: dict[str, Tensor]
) -> tuple[int, list[dict[str, float]]]:
    """Restore the state into ``roles`` and ``memory``; returns its step and curve, (0, []) if there is none.

    Raises UserError when the file is damaged or is of other networks.
    """
    if not (folder / STATE).exists():
        return 0, []
    tensors = read_shard(folder / STATE)
    try:
        return _restore(tensors, roles, memory)
    except (RuntimeError, ValueError, LookupError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / STATE}: is of other networks or optimisers ({reason}); train anew, without this state"
        ) from None


def _restore(
    tensors: Mapping[str, Tensor], roles: Mapping[str, Role], memory: dict[str, Tensor]
) -> tuple[int, list[dict[str, float]]]:
    known = ["memory/", PROGRESS]
    for name, role in roles.items():
        known += [f"{name}/module/"] + [f"{name}/average/"] * (role.average is not None)
        known += [f"{name}/optimizer/{index}/" for index in range(len(role.optimizers))]
    for name in tensors:
        if not name.startswith(tuple(known)):
            raise ValueError(f"{name}: is of none of {', '.join(roles)}")
    memory.update(_under(tensors, "memory/"))
    for name, role in roles.items():
        _load(role.module, _under(tensors, f"{name}/module/"))
        if role.average is not None:
            _load(role.average, _under(tensors, f"{name}/average/"))
        for index, optimizer in enumerate(role.optimizers):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _under(tensors, f"{name}/optimizer/{index}/").items():
                place, field = key.split("/")
                parameter = parameters[int(place)]
                if value.shape not in (parameter.shape, ()):
                    raise ValueError(f"optimizer {index}: {field} of parameter {place} is {tuple(value.shape)}")
                state.setdefault(int(place), {})[field] = dealt_as(value, parameter) if value.ndim else value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    progress: dict[str, Any] = json.loads(bytes(tensors[PROGRESS].tolist()))
    return progress["step"], progress["curve"]


def _load(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a module that may be sharded."""
    own = module.state_dict()
    module.load_state_dict({key: dealt_as(value, own[key]) if key in own else value for key, value in state.items()})


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
