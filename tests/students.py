"""A student as distillation saves it, but with random weights: quick to make, and it walks like a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks import students
from hiar.config import Context, Order, Params
from hiar.io.artifacts import write_manifest
from hiar.models.card import Walk
from hiar.models.generator import load_generator
from hiar.parameters import merge, parse_params, read_yaml

ROOT = Path(__file__).parents[1]


def save_student(
    folder: Path, order: Order = "step_first", context: Context = "output", seed: int = 0, **overrides: Any
) -> None:
    """Save a checkpoint folder of the smoke experiment's size; ``overrides`` are sections of params.yaml."""
    students.save_student(folder, smoke_params(**overrides), Walk(order=order, context=context), seed)


def smoke_params(**overrides: Any) -> Params:
    """The parameters of the smoke experiment; ``overrides`` are sections of params.yaml."""
    tree = merge(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "experiments" / "smoke.yaml"))
    return parse_params(merge(tree, overrides), Path("student"))


@torch.no_grad()
def save_attentive_student(folder: Path) -> None:
    """Save a student whose videos depend visibly on the prompt; as a text encoder is initialised, they hardly do."""
    save_student(folder)
    student = load_generator(folder)
    student.text.words.weight.mul_(20)
    student.save(folder)
    write_manifest(folder, "checkpoint", stage="distill", seed=0, variant="hiar")
