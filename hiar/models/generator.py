"""A generator in a folder: transformer, text encoder and codec in their own formats, and a card on how to use them."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from hiar.errors import BrokenRule, UserError
from hiar.models.card import CARD, Card, load_card, save_card
from hiar.models.denoiser import Denoiser
from hiar.models.finite import require_finite
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, Codec, Network, Text, World, open_world

T = TypeVar("T")


@dataclass
class Generator:
    """Everything that turns a prompt and a seed into a video.

    turns: the device that networks share by turns: one is there while it works, the others wait in the host's memory.
    None: each stays where it is. content: hash of the files of the checkpoint that it samples for.
    """

    card: Card
    denoiser: Denoiser
    text: Text
    codec: Codec
    turns: torch.device | None = None
    content: str = ""

    @cached_property
    def world(self) -> World:
        """The world of its videos."""
        return open_world(self.card.world)

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent frame."""
        return self.denoiser.channels, *self.codec.latent_size(self.world.height, self.world.width)

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """(C, k, h, w) of one block."""
        channels, height, width = self.latent_size
        return channels, self.card.video.block, height, width

    @property
    def block_pictures(self) -> tuple[int, int]:
        """Pictures of a video's first block, and of every other one."""
        first, both = (self.codec.pictures(blocks * self.card.video.block) for blocks in (1, 2))
        return first, both - first

    @property
    def block_tokens(self) -> int:
        """Tokens of one block."""
        _, *size = self.block_shape
        patches = self.denoiser.transformer.config.patch_size
        return math.prod(length // patch for length, patch in zip(size, patches, strict=True))

    def weights(self) -> tuple[int, int]:
        """Bytes of the denoiser's weights, and of the codec's. Text encoders free their weights, or have few."""
        denoiser, codec = (
            sum(tensor.nbytes for tensor in network.state_dict().values()) for network in (self.denoiser, self.codec)
        )
        return denoiser, codec

    @property
    def device(self) -> torch.device:
        """Where networks compute."""
        return self.turns or self.codec.device

    def turn(self, network: Network | Denoiser) -> None:
        """Make sure that a network is where it computes; where networks take turns, the others leave the device."""
        if self.turns is not None:
            for other in (self.denoiser, self.text, self.codec):
                if other is not network:
                    other.to("cpu")
            network.to(self.turns)

    def in_turn(self, network: Network | Denoiser, results: Iterable[T]) -> Iterator[T]:
        """Yield what a network computes, one result after the other; in between, other networks may have their turn."""
        steps = iter(results)
        while True:
            self.turn(network)
            try:
                result = next(steps)
            except StopIteration:
                return
            yield result

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        """Text embeddings (B, words, dim), of the denoiser's type."""
        self.turn(self.text)
        return self.text.encode(captions).to(self.denoiser.dtype)

    def prepare(self, captions: Collection[str]) -> None:
        """Do once what all captions need, such as loading an encoder, before they are embedded part by part."""
        self.turn(self.text)
        self.text.prepare([*captions, "", self.world.negative_prompt])

    def embed_nothing(self) -> Tensor:
        """The embedding (1, words, dim) of the negative prompt, for guidance."""
        return self.embed([self.world.negative_prompt])

    def autocast(self) -> torch.autocast:
        """Autocast for a teacher: weights and latents keep their precision, so that a solver's small steps add up."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.card.precision == "bf16")

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
        """Write transformer/, text_encoder/, codec/ and the card into an existing folder.

        Raises UserError when a weight is not finite.
        """
        require_finite(self.denoiser.transformer.state_dict(), str(folder / TRANSFORMER))
        self.text.save(folder / TEXT)
        self.codec.save(folder / CODEC)
        self.denoiser.transformer.save_pretrained(folder / TRANSFORMER)
        save_card(folder, self.card)


def load_generator(folder: Path, dtype: torch.dtype = torch.float32) -> Generator:
    """The generator of a checkpoint folder, frozen; the denoiser's weights in ``dtype``, except what Wan keeps in fp32.

    Raises UserError when a part is missing, broken or of another shape, or a weight is not finite.
    """
    card = load_card(folder)
    world = open_world(card.world)
    transformer = world.load_transformer(folder / TRANSFORMER, dtype)
    text, codec = world.load_text(folder / TEXT), world.load_codec(folder / CODEC)
    shape = transformer.config
    for field, found, wanted, why in (
        (
            "in_channels",
            shape.in_channels,
            codec.channels + 2 * card.coordinates,
            "should match the codec beside it and the card:",
        ),
        ("out_channels", shape.out_channels, codec.channels, "should match the codec beside it:"),
        ("text_dim", shape.text_dim, text.dim, "should match the text encoder beside it:"),
    ):
        if found != wanted:
            raise UserError(
                f"{folder / TRANSFORMER / 'config.json'}: {field} = {found}: {why} "
                f"{wanted}; the parts are not of one checkpoint, make it again"
            )
    generator = Generator(card, Denoiser(transformer, card.prediction, card.coordinates), text, codec).frozen()
    _check_patches(folder, generator)
    return generator


def _check_patches(folder: Path, generator: Generator) -> None:
    """Raise UserError unless the world's pictures divide into whole latent pixels, and these into whole tokens."""
    world, patch = generator.world, generator.denoiser.transformer.config.patch_size[1:]
    remedy = "make the checkpoint again"
    try:
        _, height, width = generator.latent_size
    except BrokenRule as error:
        remedy = f"{error.remedy}; {remedy}"
    else:
        if height % patch[0] == width % patch[1] == 0:
            return
        remedy = f"{height}x{width} latent pixels do not divide into tokens of {patch[0]}x{patch[1]}; {remedy}"
    raise UserError(f"{folder / CARD}: world: {world.width}x{world.height} pixels: {remedy}")


def clone(denoiser: Denoiser) -> Denoiser:
    """A trainable copy, in training mode."""
    return copy.deepcopy(denoiser).requires_grad_(True).train()
