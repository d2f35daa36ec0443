"""A student as distillation leaves one, with random weights: quick to make, and it walks like a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hiar.config import Context, Order
from hiar.io.artifacts import write_manifest
from hiar.models.codec import PatchCodec
from hiar.models.denoiser import build_denoiser
from hiar.models.generator import Card, Generator, Walk, load_generator
from hiar.models.text import build_word_encoder
from hiar.parameters import merge, parse_params, read_yaml
from hiar.world.captions import vocabulary

ROOT = Path(__file__).parents[1]


def save_student(
    folder: Path, order: Order = "step_first", context: Context = "output", seed: int = 0, **overrides: Any
) -> None:
    """A checkpoint folder of the smoke experiment's size; ``overrides`` are sections of params.yaml."""
    tree = merge(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "experiments" / "smoke.yaml"))
    params = parse_params(merge(tree, overrides), Path("student"))
    card = Card(
        stage="distill",
        variant="hiar",
        seed=seed,
        walk=Walk(order=order, context=context),
        guidance=1.0,
        solver_steps=4,
        prediction=params.model.prediction,
        coordinates=params.model.coordinates,
        world=params.world,
        video=params.video,
        schedule=params.schedule,
    )
    spec = params.codec
    codec = PatchCodec(spec.patch, spec.channels, spec.width, spec.depth)
    denoiser = build_denoiser(params.model, spec.channels, seed)
    text = build_word_encoder(vocabulary(params.world), params.model.text_length, params.model.text_dim, seed)
    folder.mkdir(parents=True)
    Generator(card, denoiser, text, codec).save(folder)
    write_manifest(folder, "checkpoint", stage="distill", seed=seed, variant="hiar")


@torch.no_grad()
def save_attentive_student(folder: Path) -> None:
    """A student whose prompts show: as a text encoder is initialised, they hardly do."""
    save_student(folder)
    student = load_generator(folder)
    student.text.words.weight.mul_(20)
    student.save(folder)
    write_manifest(folder, "checkpoint", stage="distill", seed=0, variant="hiar")
