"""The procedural captioned video world: its scenes and captions, its codec and its text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hiar import config
from hiar.errors import UserError
from hiar.models.pixels import to_video
from hiar.noise import seeded
from hiar.worlds.interface import CODEC, TRANSFORMER, Lora, Part
from hiar.worlds.shapes.captions import captions, parse_caption, vocabulary
from hiar.worlds.shapes.codec import PatchCodec
from hiar.worlds.shapes.render import clips

if TYPE_CHECKING:  # networks take seconds to import, so only what needs one imports it: scores need none
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    from hiar.worlds.shapes.text import WordEncoder

FIT_CLIPS = 64  # clips whose patches give the encoder's principal components


class Shapes:
    """One moving shape on a plain background; see `hiar.worlds.interface.World`."""

    negative_prompt = ""
    solver = None
    has_clips = True
    base = None

    def __init__(self, settings: config.ShapesWorld) -> None:
        self.settings = settings
        self.name = "the built-in video world"
        self.height = self.width = settings.size
        self.frames_per_second = settings.frames_per_second

    def check(self, prompt: str) -> None:
        parse_caption(self.settings, prompt)

    def prompts(self, *, seed: int, first: int, count: int) -> list[str]:
        return captions(self.settings, seed=seed, first=first, count=count)

    def clips(self, *, seed: int, first: int, count: int, frames: int) -> tuple[Tensor, list[str]]:
        return clips(self.settings, seed=seed, first=first, count=count, frames=frames)

    def new_codec(self, settings: config.Codec, *, seed: int, frames: int) -> PatchCodec:
        with seeded("codec weights", seed):
            codec = PatchCodec(settings.patch, settings.channels, settings.width, settings.depth)
        shown, _ = self.clips(seed=seed, first=0, count=FIT_CLIPS, frames=frames)
        codec.fit_encoder(to_video(shown).transpose(1, 2).flatten(0, 1))
        return codec

    def new_text(self, model: config.Model, *, seed: int) -> WordEncoder:
        from hiar.worlds.shapes.text import build_word_encoder

        return build_word_encoder(vocabulary(self.settings), model.text_length, model.text_dim, seed)

    def adopt(self, part: Part, folder: Path) -> None:
        raise ValueError("the built-in world has no base")

    def referred(self, folder: Path) -> None:
        """None: a checkpoint holds all its parts."""

    def verify(self, folder: Path) -> None:
        """Nothing to read: no folder refers to a base."""

    def check_foreign(self, source: Path, weights: str | None) -> None:
        raise UserError(f"{source}: no other project has checkpoints of the built-in world; import one of Wan")

    def bring_in(self, source: Path, weights: str | None, folder: Path, lora: Lora | None = None) -> None:
        self.check_foreign(source, weights)

    def send_out(self, folder: Path, form: str, out: Path) -> None:
        raise UserError(f"--to = {form}: no other project reads checkpoints of the built-in world; export one of Wan")

    def outline(self, part: Part, params: config.Params, folder: Path | None = None) -> nn.Module:
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        if part == TRANSFORMER:
            assert folder is not None, "its own is of the shape that params.yaml says"
            path = folder / TRANSFORMER / "config.json"
            if not path.is_file():
                raise UserError(f"{path}: no such file; name a checkpoint folder, such as artifacts/seed-0/teacher")
            return WanTransformer3DModel.from_config(json.loads(path.read_text(encoding="utf-8")))
        assert params.codec and params.model
        if part == CODEC:
            return PatchCodec(params.codec.patch, params.codec.channels, params.codec.width, params.codec.depth)
        return self.new_text(params.model, seed=0)

    def seconds(self, frames: int) -> float:
        return frames / self.frames_per_second

    def words(self, params: config.Params) -> int:
        assert params.model
        return params.model.text_length

    def kept(self, prompts: int) -> tuple[int, int]:
        return 0, 0

    def load_transformer(self, folder: Path, dtype: torch.dtype | None = torch.float32) -> WanTransformer3DModel:
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

        from hiar.models.loading import cast_weights, load_model

        transformer = load_model(WanTransformer3DModel, folder)
        if dtype is not None:
            cast_weights(transformer, dtype)
        return transformer

    def load_text(self, folder: Path) -> WordEncoder:
        from hiar.worlds.shapes.text import WordEncoder

        return WordEncoder.load(folder)

    def load_codec(self, folder: Path) -> PatchCodec:
        return PatchCodec.load(folder)


def open_world(settings: config.ShapesWorld) -> Shapes:
    """The world of a section of params.yaml."""
    return Shapes(settings)
