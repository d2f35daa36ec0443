"""Checkpoints of students with random weights: they walk as trained ones do and take as long."""

from __future__ import annotations

from pathlib import Path

from hiar.config import Params
from hiar.io.artifacts import write_manifest
from hiar.models.card import Card, Walk
from hiar.models.denoiser import build_denoiser
from hiar.models.generator import Generator
from hiar.worlds.interface import open_world
from hiar.worlds.shapes.codec import PatchCodec


def save_student(folder: Path, params: Params, walk: Walk, seed: int = 0) -> None:
    """Write a checkpoint folder with the shape that ``params`` describe."""
    spec, model = params.codec, params.model
    assert spec is not None and model is not None
    card = Card(
        stage="distill",
        variant="hiar",
        seed=seed,
        walk=walk,
        guidance=params.teacher.guidance,
        solver_steps=params.teacher.solver_steps,
        prediction=model.prediction,
        coordinates=model.coordinates,
        world=params.world,
        video=params.video,
        schedule=params.schedule,
        conventions=params.conventions,
        precision=params.runtime.precision,
    )
    codec = PatchCodec(spec.patch, spec.channels, spec.width, spec.depth)
    denoiser = build_denoiser(model, spec.channels, seed)
    text = open_world(params.world).new_text(model, seed=seed)
    folder.mkdir(parents=True)
    Generator(card, denoiser, text, codec).save(folder)
    write_manifest(folder, "checkpoint", stage="distill", seed=seed, variant="hiar")
