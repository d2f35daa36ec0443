"""A generator in a folder: transformer, text encoder and codec in their own formats, and a card on how to use them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.utils import logging
from pydantic import ValidationError
from torch import Tensor

from hiar import config
from hiar.errors import UserError
from hiar.models.codec import PatchCodec
from hiar.models.denoiser import Denoiser
from hiar.models.text import WordEncoder

CARD = "generator.json"

Model = TypeVar("Model", bound=ModelMixin)


class Walk(config.Section):
    """How the student was trained to walk the grid."""

    order: config.Order
    context: config.Context


class Card(config.Section):
    """What is needed besides weights to generate with a checkpoint, and where it came from."""

    stage: Literal["teacher", "init", "distill"]
    variant: str | None
    seed: int
    walk: Walk | None  # none: a bidirectional teacher, or a causal init that may walk in any way
    guidance: float  # of the teacher; students use none
    solver_steps: int  # of the teacher
    prediction: config.Prediction
    coordinates: bool
    world: config.World
    video: config.Video
    schedule: config.Schedule
    conventions: config.Conventions | None  # none of a teacher, which shows no context
    precision: config.Precision  # it was trained with, and computes in


@dataclass
class Generator:
    """Everything that turns a prompt and a seed into a video."""

    card: Card
    denoiser: Denoiser
    text: WordEncoder
    codec: PatchCodec

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent frame."""
        side = self.card.world.size // self.codec.patch
        return self.denoiser.channels, side, side

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """(C, k, h, w) of one block."""
        channels, height, width = self.latent_size
        return channels, self.card.video.block, height, width

    @property
    def block_tokens(self) -> int:
        """Tokens of one block."""
        _, *size = self.block_shape
        patches = self.denoiser.transformer.config.patch_size
        return math.prod(length // patch for length, patch in zip(size, patches, strict=True))

    @torch.no_grad()
    def embed(self, captions: list[str]) -> Tensor:
        """Text embeddings (B, words, dim), of the denoiser's type."""
        return self.text.encode(captions).to(self.denoiser.dtype)

    def autocast(self) -> torch.autocast:
        """In what a teacher computes: weights and latents stay as they are, so that a solver's small steps add up."""
        kind = next(self.denoiser.parameters()).device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.card.precision == "bf16")

    def to(self, device: torch.device | str) -> Generator:
        """Move every network."""
        for network in (self.denoiser, self.text, self.codec):
            network.to(device)
        return self

    def frozen(self) -> Generator:
        """Set every network to evaluation without gradients."""
        for network in (self.denoiser, self.text, self.codec):
            network.eval().requires_grad_(False)
        return self

    def save(self, folder: Path) -> None:
        """Write transformer/, text_encoder/, codec/ and the card into an existing folder."""
        self.denoiser.transformer.save_pretrained(folder / "transformer")
        self.text.save_pretrained(folder / "text_encoder")
        (folder / "codec").mkdir(exist_ok=True)
        self.codec.save(folder / "codec")
        (folder / CARD).write_text(self.card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_generator(folder: Path) -> Generator:
    """The generator of a checkpoint folder, frozen.

    Raises UserError when a part is missing, broken or of another shape.
    """
    card = load_card(folder)
    transformer = _load(WanTransformer3DModel, folder / "transformer")
    text = _load(WordEncoder, folder / "text_encoder")
    codec = PatchCodec.load(folder / "codec")
    expected = codec.channels + 2 * card.coordinates
    if transformer.config.in_channels != expected:
        raise UserError(
            f"{folder / 'transformer' / 'config.json'}: in_channels = {transformer.config.in_channels}: "
            f"the codec beside it and the card make {expected}; the parts are not of one checkpoint, make it anew"
        )
    return Generator(card, Denoiser(transformer, card.prediction, card.coordinates), text, codec).frozen()


def load_card(folder: Path) -> Card:
    """The card of a checkpoint folder. Raises UserError when there is none or it is not valid."""
    path = folder / CARD
    try:
        return Card.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a checkpoint folder, such as artifacts/seed-0/init") from None
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        found = "is missing" if problem["type"] == "missing" else f"= {problem['input']!r}: {problem['msg']}"
        raise UserError(f"{path}: {field} {found}; make the checkpoint anew") from None


def clone(denoiser: Denoiser) -> Denoiser:
    """A trainable copy, in training mode."""
    return copy.deepcopy(denoiser).requires_grad_(True).train()


def _load(kind: type[Model], folder: Path) -> Model:
    """A diffusers model saved by save_pretrained, its errors made into one line.

    diffusers only warns of weights that are missing, and makes them up.
    """
    try:
        with _no_warnings():
            model, info = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        for name in ("missing_keys", "unexpected_keys"):
            if info[name]:
                raise ValueError(f"{name.replace('_keys', '')} weights: {', '.join(sorted(info[name]))}")
    except (OSError, ValueError, RuntimeError, TypeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: cannot be loaded ({reason}); "
            "the checkpoint is missing, truncated or of another shape, make it anew"
        ) from None
    return model


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence diffusers below errors."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
