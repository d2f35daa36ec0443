"""Wan2.1: its text encoder, its video codec and its checkpoints; the base model is adopted, never copied."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NoReturn, Self

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn

from hiar import config
from hiar.errors import UserError
from hiar.io.files import file_hash
from hiar.io.fingerprints import cache_folder, cache_locked
from hiar.noise import Purpose, stream
from hiar.worlds.interface import PURPOSES, SPLIT, TEXT, TRANSFORMER, Lora, Part, Trainable
from hiar.worlds.wan.base import convert_base
from hiar.worlds.wan.codec import WanCodec, load_codec, pixel_frames
from hiar.worlds.wan.embeddings import Embeddings, embed, embedding_bytes
from hiar.worlds.wan.exchange import bring_in, describe, open_foreign, send_out
from hiar.worlds.wan.formats.loading import load_transformer
from hiar.worlds.wan.outline import outline
from hiar.worlds.wan.prompts import PromptFile
from hiar.worlds.wan.references import locate, refer, referred
from hiar.worlds.wan.solver import unipc
from hiar.worlds.wan.text import MAX_TOKENS, NEGATIVE_PROMPT, encoder_width, encoding_type
from hiar.worlds.wan.tiny import make_tiny_wan

TINY = Path("tiny")
SHUFFLED: dict[str, Purpose] = {"distill": "distill prompts", "critic": "critic prompts"}

__all__ = ["convert_base", "describe", "open_world"]


class Wan:
    """See `hiar.worlds.interface.World`."""

    name = "Wan2.1"
    has_clips = False
    solver = staticmethod(unipc)

    def __init__(self, settings: config.WanWorld) -> None:
        self.settings = settings
        self.base: Path | None = cache_folder() / "tiny-wan" if settings.base == TINY else settings.base
        self.height, self.width = settings.height, settings.width
        self.frames_per_second = settings.frames_per_second
        self.negative_prompt = NEGATIVE_PROMPT if settings.negative_prompt is None else settings.negative_prompt

    def check(self, prompt: str) -> None:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"prompt {prompt[:40]!a}: character {error.start} is a lone surrogate; give it in UTF-8"
            ) from None

    def prompts(self, *, seed: int, first: int, count: int) -> list[str]:
        """The lines of the file in order, beginning again after the last one.

        A student and its critic are trained on permutations of their own, a new one for each pass: in files of users'
        prompts, neighbours are often variations of one prompt, and a batch of them would be of one kind.
        """
        path, content = self.settings.prompts, self.settings.prompts_sha256
        if path is None:
            raise UserError("params.yaml: world.prompts: is null; name a text file with one prompt a line")
        lines = _lines(path, content, path.stat().st_mtime_ns if path.exists() else 0)
        return [lines[_place(number, len(lines), seed)] for number in range(first, first + count)]

    def clips(self, *, seed: int, first: int, count: int, frames: int) -> NoReturn:
        raise ValueError("Wan has no clips of its own")

    def new_codec(self, settings: config.Codec, *, seed: int, frames: int) -> Trainable:
        raise ValueError("Wan's codec is the base model's")

    def new_text(self, model: config.Model, *, seed: int) -> NoReturn:
        raise ValueError("Wan's text encoder is the base model's")

    def adopt(self, part: Part, folder: Path) -> None:
        refer(folder, self._here(), part)

    def referred(self, folder: Path) -> tuple[Path, str] | None:
        return referred(folder)

    def verify(self, folder: Path) -> None:
        locate(folder, verify=True)

    def check_foreign(self, source: Path, weights: str | None) -> None:
        if self.settings.base == TINY or (self.base is not None and self.base.exists()):
            open_foreign(source, weights, self._here())

    def bring_in(self, source: Path, weights: str | None, folder: Path, lora: Lora | None = None) -> None:
        bring_in(source, weights, self._here(), folder, lora)

    def send_out(self, folder: Path, form: str, out: Path) -> None:
        base = locate(folder)
        send_out(folder if base is None else base / TRANSFORMER, base or _base(folder.with_name(TEXT)), form, out)

    def _here(self) -> Path:
        """The base; the tiny one is made when it is first needed."""
        assert self.base is not None
        if self.settings.base == TINY:
            # On the CPU even when `hiar plan` is first, whose default is the meta device.
            with cache_locked(self.base.parent), torch.device("cpu"):
                if not self.base.exists():
                    make_tiny_wan(self.base, seed=0)
        return self.base

    def outline(self, part: Part, params: config.Params, folder: Path | None = None) -> nn.Module:
        return outline(folder or self._here(), part)

    def seconds(self, frames: int) -> float:
        return pixel_frames(frames) / self.frames_per_second

    def words(self, params: config.Params) -> int:
        return MAX_TOKENS

    def kept(self, prompts: int) -> tuple[int, int]:
        """While the file is missing, every draw may be a different prompt, and a prompt may have all tokens."""
        assert self.base is not None
        path, lines = self.settings.prompts, []
        if path is not None and path.exists():
            lines = list(dict.fromkeys(_lines(path, None, path.stat().st_mtime_ns)))
            prompts = min(prompts, len(lines))
        return prompts, prompts * embedding_bytes(self.base, lines)

    def load_transformer(self, folder: Path, dtype: torch.dtype | None = torch.float32) -> WanTransformer3DModel:
        """A checkpoint's own transformer, or the base's that it refers to."""
        base = locate(folder)
        return load_transformer(folder if base is None else base / TRANSFORMER, dtype)

    def load_text(self, folder: Path) -> CachedText:
        return CachedText(_base(folder))

    def load_codec(self, folder: Path) -> WanCodec:
        return load_codec(_base(folder))


open_world = Wan


class CachedText:
    """UMT5's embeddings from the cache on disk; the encoder is in memory only while it computes missing ones.

    See `hiar.worlds.interface.Text`.
    """

    def __init__(self, base: Path) -> None:
        self.base, self.device = base, torch.device("cpu")
        self.dim = encoder_width(base)
        self.known: Embeddings | None = None

    def to(self, device: torch.device | str) -> Self:
        if torch.device(device).type != self.device.type:
            self.known = None  # the other device's embeddings may have another type
        self.device = torch.device(device)
        return self

    def eval(self) -> Self:
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        return self

    def prepare(self, prompts: Collection[str]) -> None:
        """Embed the prompts that the cache lacks, with an encoder that is loaded once and then freed."""
        dtype = encoding_type(self.base, self.device)
        # One at a time: in a batch, the last bits depend on the other prompts, and so on which process came first.
        self.known = embed(prompts, self.base, cache_folder(), dtype, self.device, batch=1)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B, 512, dim), zero where a prompt has no token."""
        if self.known is None or not all(prompt in self.known for prompt in prompts):
            self.prepare(prompts)
        assert self.known is not None
        return self.known.read(prompts).to(self.device, torch.float32)

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        refer(folder, self.base, TEXT)


def _base(folder: Path) -> Path:
    """The base model that a part of a checkpoint refers to."""
    base = locate(folder)
    if base is None:
        raise UserError(f"{folder}: refers to no base model; make the checkpoint or import it again")
    return base


def _place(number: int, lines: int, seed: int) -> int:
    """The index of a prompt's line, from the prompt's number."""
    purpose, place = divmod(number, SPLIT)
    turn, place = divmod(place, lines)
    shuffled = SHUFFLED.get(PURPOSES[purpose])
    return place if shuffled is None else int(_order(shuffled, seed, turn, lines)[place])


@lru_cache(maxsize=4)
def _order(purpose: Purpose, seed: int, turn: int, lines: int) -> np.ndarray:
    """The permutation of a file's lines in pass ``turn``."""
    return stream(purpose, seed, step=turn).permutation(lines)


@lru_cache
def _lines(path: Path, content: str | None, changed: int) -> list[str]:
    """The prompts of a file. content: its expected SHA-256. changed: when it changed last, a key of the cache."""
    lines = list(PromptFile(path))
    if content is not None and (found := file_hash(path)) != content:
        raise UserError(
            f"{path}: SHA-256 = {found}: params.yaml says {content}; restore the file, or use `hiar run`, which renews "
            "the hashes that it filled in"
        )
    return lines
