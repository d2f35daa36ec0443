"""A small text encoder for the built-in world's captions, trained with the teacher and frozen afterwards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hiar.errors import UserError, suggest
from hiar.models.finite import require_finite
from hiar.models.loading import load_model
from hiar.noise import seeded
from hiar.worlds.shapes.captions import words_of


class WordEncoder(ModelMixin, ConfigMixin):
    """Embeds the words of a caption with their positions; the empty caption is the unconditional one."""

    @register_to_config
    def __init__(self, vocabulary: list[str], length: int, dim: int) -> None:
        super().__init__()
        self.index = {word: place for place, word in enumerate(vocabulary, start=1)}  # 0 is padding
        self.words = nn.Embedding(len(vocabulary) + 1, dim)
        self.places = nn.Parameter(torch.randn(length, dim) * 0.02)
        self.mix = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, length) -> (B, length, dim)."""
        return self.mix(self.words(tokens) + self.places)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Word indices (B, length), padded with 0.

        Raises UserError for unknown words and captions that are too long.
        """
        tokens = torch.zeros(len(captions), self.config.length, dtype=torch.long)
        for row, caption in enumerate(captions):
            words = words_of(caption)
            if len(words) > self.config.length:
                raise UserError(
                    f"prompt '{caption}': has {len(words)} words; the model reads at most {self.config.length}"
                )
            for column, word in enumerate(words):
                tokens[row, column] = self._number(word, caption)
        return tokens.to(self.places.device)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.config.dim)

    def save(self, folder: Path) -> None:
        """Write it into a folder. Raises UserError when a weight is not finite."""
        require_finite(self.state_dict(), str(folder))
        self.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> WordEncoder:
        """The encoder saved in ``folder``. Raises UserError when it is missing or broken."""
        return load_model(cls, folder)

    def prepare(self, captions: Collection[str]) -> None:
        """Nothing: captions are no cheaper to embed together."""

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Embeddings (B, length, dim) of captions."""
        return cast(Tensor, self(self.tokenize(captions)))

    def _number(self, word: str, caption: str) -> int:
        if word not in self.index:
            remedy = suggest(word, self.index)
            raise UserError(f"prompt '{caption}': the model does not know the word '{word}'; {remedy}")
        return self.index[word]


def build_word_encoder(vocabulary: Sequence[str], length: int, dim: int, seed: int) -> WordEncoder:
    """A randomly initialised encoder; the weights depend on ``seed`` alone."""
    with seeded("text weights", seed):
        return WordEncoder(list(vocabulary), length, dim)
