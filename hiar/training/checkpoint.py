"""The state of a training run in a folder: safetensors only, whole or absent, enough for an exact resume.

All randomness of training is a function of the step, so there is no generator state to keep.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from hiar.training.role import Role

STATE = "state.safetensors"
PROGRESS = "progress.json"


def save_state(
    folder: Path, step: int, roles: Mapping[str, Role], memory: Mapping[str, Tensor], curve: list[dict[str, float]]
) -> None:
    """Keep the state after ``step`` updates as ``folder/step-N``, then drop older ones."""
    target = folder / f"step-{step:07d}"
    temporary = folder / f".{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {f"memory/{name}": value for name, value in memory.items()}
    numbers: dict[str, Any] = {}
    for name, role in roles.items():
        tensors |= {f"{name}/module/{key}": value for key, value in role.module.state_dict().items()}
        tensors |= {f"{name}/average/{key}": value for key, value in role.average.state_dict().items()}
        for index, optimizer in enumerate(role.optimizers):
            for parameter, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    place = f"{name}/optimizer/{index}/{parameter}/{key}"
                    if isinstance(value, Tensor):
                        tensors[place] = value
                    else:
                        numbers[place] = value
    save_file({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, temporary / STATE)
    (temporary / PROGRESS).write_text(json.dumps({"step": step, "curve": curve, "numbers": numbers}), encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for old in saved_steps(folder):
        if old != target:
            shutil.rmtree(old)


def load_state(
    folder: Path, roles: Mapping[str, Role], memory: dict[str, Tensor]
) -> tuple[int, list[dict[str, float]]]:
    """Restore the newest state into ``roles`` and ``memory``; returns its step and curve, (0, []) if there is none."""
    saved = saved_steps(folder)
    if not saved:
        return 0, []
    progress = json.loads((saved[-1] / PROGRESS).read_text(encoding="utf-8"))
    tensors = load_file(saved[-1] / STATE)
    memory.update({key.removeprefix("memory/"): value for key, value in tensors.items() if key.startswith("memory/")})
    for name, role in roles.items():
        role.module.load_state_dict(_under(tensors, f"{name}/module/"))
        role.average.load_state_dict(_under(tensors, f"{name}/average/"))
        for index, optimizer in enumerate(role.optimizers):
            place = f"{name}/optimizer/{index}/"
            state: dict[int, dict[str, Any]] = {}
            for key, value in {**_under(tensors, place), **_under(progress["numbers"], place)}.items():
                parameter, field = key.split("/")
                state.setdefault(int(parameter), {})[field] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress["step"], progress["curve"]


def saved_steps(folder: Path) -> list[Path]:
    """Whole states in ``folder``, oldest first."""
    return sorted(folder.glob("step-*"))


def _under(mapping: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in mapping.items() if key.startswith(prefix)}
