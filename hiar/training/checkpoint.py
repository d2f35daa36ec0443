"""The state of a training run in one file: safetensors with a checksum, whole or absent, enough for an exact resume.

All randomness of training is a function of the step, so there is no generator state to keep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiar.errors import UserError
from hiar.io.shards import read_shard, write_shard
from hiar.training.role import Role

STATE = "state.safetensors"
PROGRESS = "progress"  # the entry that holds step and curve, as JSON in bytes


def save_state(
    folder: Path, step: int, roles: Mapping[str, Role], memory: Mapping[str, Tensor], curve: list[dict[str, float]]
) -> None:
    """Keep the state after ``step`` updates, in the place of an older one."""
    progress = json.dumps({"step": step, "curve": curve}).encode()
    tensors = {PROGRESS: torch.frombuffer(bytearray(progress), dtype=torch.uint8)}
    tensors |= {f"memory/{name}": value for name, value in memory.items()}
    for name, role in roles.items():
        tensors |= {f"{name}/module/{key}": value for key, value in role.module.state_dict().items()}
        if role.average is not None:
            tensors |= {f"{name}/average/{key}": value for key, value in role.average.state_dict().items()}
        for index, optimizer in enumerate(role.optimizers):
            for parameter, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}/optimizer/{index}/{parameter}/{key}": value for key, value in state.items()}
    folder.mkdir(exist_ok=True)
    write_shard(folder / STATE, tensors, {})


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
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder / STATE}: is of other networks or optimisers ({reason}); train anew, without this state"
        ) from None


def _restore(
    tensors: Mapping[str, Tensor], roles: Mapping[str, Role], memory: dict[str, Tensor]
) -> tuple[int, list[dict[str, float]]]:
    memory.update(_under(tensors, "memory/"))
    for name, role in roles.items():
        role.module.load_state_dict(_under(tensors, f"{name}/module/"))
        if role.average is not None:
            role.average.load_state_dict(_under(tensors, f"{name}/average/"))
        for index, optimizer in enumerate(role.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _under(tensors, f"{name}/optimizer/{index}/").items():
                parameter, field = key.split("/")
                state.setdefault(int(parameter), {})[field] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    progress: dict[str, Any] = json.loads(bytes(tensors[PROGRESS].tolist()))
    return progress["step"], progress["curve"]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
