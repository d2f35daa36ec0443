"""Students as distillation leaves them, with random weights: they walk, and take as long, as trained ones."""

from __future__ import annotations

from pathlib import Path

from hiar.config import Params
from hiar.io.artifacts import write_manifest
from hiar.models.codec import PatchCodec
from hiar.models.denoiser import build_denoiser
from hiar.models.generator import Card, Generator, Walk
from hiar.models.text import build_word_encoder
from hiar.world.captions import vocabulary


def save_student(folder: Path, params: Params, walk: Walk, seed: int = 0) -> None:
    """A checkpoint folder of the shape that ``params`` describe."""
    card = Card(
        stage="distill",
        variant="hiar",
        seed=seed,
        walk=walk,
        guidance=params.teacher.guidance,
        solver_steps=params.teacher.solver_steps,
        prediction=params.model.prediction,
        coordinates=params.model.coordinates,
        world=params.world,
        video=params.video,
        schedule=params.schedule,
        conventions=params.conventions,
        precision=params.runtime.precision,
    )
    spec = params.codec
    codec = PatchCodec(spec.patch, spec.channels, spec.width, spec.depth)
    denoiser = build_denoiser(params.model, spec.channels, seed)
    text = build_word_encoder(vocabulary(params.world), params.model.text_length, params.model.text_dim, seed)
    folder.mkdir(parents=True)
    Generator(card, denoiser, text, codec).save(folder)
    write_manifest(folder, "checkpoint", stage="distill", seed=seed, variant="hiar")
