"""The world, its videos, and the networks that generate them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hiar.config.section import (
    Background,
    Color,
    Count,
    Digest,
    Distinct,
    File,
    NonNegative,
    Positive,
    Prediction,
    Probability,
    Renoise,
    Section,
    Shape,
    Size,
)
from hiar.config.training import Training
from hiar.errors import require


class ShapesWorld(Section):
    """The procedural video world: one moving shape on a plain background."""

    kind: Literal["shapes"]
    size: Annotated[int, Field(ge=1, le=4096)]  # pixels per side
    shapes: Annotated[list[Shape], Field(min_length=1), Distinct]
    colors: Annotated[list[Color], Field(min_length=1), Distinct]
    backgrounds: Annotated[list[Background], Field(min_length=1), Distinct]
    radius: Positive  # half the longer side of a shape, in pixels
    speed: Annotated[tuple[Positive, Positive], Field(strict=False)]  # slowest and fastest, pixels per frame
    camera: NonNegative  # fastest pan of the striped backdrop, pixels per frame; 0: plain backdrop
    caption_dropout: Probability  # chance that a caption omits speed, direction or background (each independently)
    frames_per_second: Annotated[int, Field(ge=1, le=1000)]  # of the videos written

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.speed[0] <= self.speed[1], "speed", self.speed, "give the slowest first: [slow, fast]")
        require(
            2 * self.radius + 2 * self.speed[1] <= self.size,
            "radius",
            self.radius,
            f"the shape must fit in {self.size} pixels with room to move; lower radius or speed, or raise size",
        )
        require(
            32 * self.radius >= self.size,
            "radius",
            self.radius,
            f"is too small to be found in {self.size} pixels; give at least {self.size / 32:g}",
        )
        require(self.camera <= self.size, "camera", self.camera, f"cannot exceed size = {self.size} pixels a frame")
        return self


class WanWorld(Section):
    """Wan2.1, adopted from a folder of its base model; prompts come from files, one per line."""

    kind: Literal["wan"]
    base: File  # Wan2.1-T2V in diffusers' layout; tiny: random weights, made when first needed
    height: Annotated[int, Field(ge=16, le=2**13, multiple_of=16)]  # pixels
    width: Annotated[int, Field(ge=16, le=2**13, multiple_of=16)]
    frames_per_second: Annotated[int, Field(ge=1, le=1000)]  # of the videos written
    prompts: File | None  # for pairs and distillation; compared samples use sample.prompts
    # Hash of that file, so that DVC sees a change: `hiar run NAME` writes it. Other contents are refused; null: any.
    prompts_sha256: Digest | None = None
    negative_prompt: str | None  # that guidance leads away from; null: Wan's own


World = Annotated[ShapesWorld | WanWorld, Field(discriminator="kind")]


class Video(Section):
    """The geometry of latent videos, in latent frames."""

    frames: Count  # of a training clip, and of the teacher's videos
    block: Count  # k: frames denoised together
    window: Count  # frames that the student attends to, its own block included
    sink_blocks: Annotated[int, Field(ge=0)]  # first blocks that never leave the window; the paper uses none

    @model_validator(mode="after")
    def _check(self) -> Self:
        k = self.block
        require(
            self.frames % k == 0,
            "frames",
            self.frames,
            f"must be a multiple of block = {k}; try {_round(self.frames, k)}",
        )
        require(
            self.window % k == 0 and self.window >= k,
            "window",
            self.window,
            f"must be a multiple of block = {k} and no smaller than one block; try {max(k, _round(self.window, k))}",
        )
        require(
            (self.sink_blocks + 1) * k <= self.window,
            "sink_blocks",
            self.sink_blocks,
            f"the window of {self.window} frames must hold the sinks and one more block; lower it",
        )
        return self

    @property
    def window_blocks(self) -> int:
        return self.window // self.block


class Conventions(Section):
    """How context is shown, where public implementations differ; a checkpoint's card records its own."""

    given: Literal["level", "clean"]  # given blocks: at the level of the method's context, or clean as in public code
    sinks: Literal["turn", "stay"]  # position of sinks: moves with the sliding window, or stays as it was at first
    context_noise: Annotated[float, Field(ge=0, lt=1)]  # level at which clean contexts are written; the paper's is 0


class Schedule(Section):
    """Noise levels (Eq. 1-3)."""

    teacher_shift: Positive
    student_shift: Positive | None  # of the student's levels, at even steps of t; null: student_levels lists them
    student_steps: Count  # S
    renoise: Renoise  # how a student state moves to the next level
    # The level at which each step begins, if they follow no shift: CausVid's are [1.0, 0.757, 0.522].
    student_levels: Annotated[tuple[Probability, ...], Field(strict=False)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels, steps = self.student_levels, self.student_steps
        require(
            (levels is None) != (self.student_shift is None),
            "student_shift",
            self.student_shift,
            "give either the shift of even steps or student_levels, and null for the other",
        )
        if levels is not None:
            falling = all(above > below for above, below in pairwise((*levels, 0.0)))
            require(
                len(levels) == steps and levels[0] == 1 and falling,
                "student_levels",
                levels,
                f"must be student_steps = {steps} decreasing numbers, the first 1 and the last above 0",
            )
        return self


class Codec(Section):
    """Pixels <-> latents: a fixed linear patch encoder and a trained convolutional decoder."""

    patch: Size  # pixels per side of one latent pixel
    channels: Size
    width: Size  # channels of the decoder's refiner
    depth: Size  # its residual layers, of two convolutions each
    noise: Probability  # largest standard deviation of the noise on latents that the decoder is trained on
    training: Training

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.channels <= 3 * self.patch**2, "channels", self.channels, "cannot exceed 3 patch^2")
        return self


class Model(Section):
    """The Wan transformer of teacher, student and critic."""

    layers: Size
    heads: Size
    head_dim: Annotated[int, Field(ge=6, le=2**14, multiple_of=2)]
    ffn: Size
    freq_dim: Annotated[int, Field(ge=2, le=2**14, multiple_of=2)]
    patch: Size  # latent pixels per side of one token
    prediction: Prediction
    coordinates: bool  # add x and y as input channels, for models with several tokens per frame
    text_dim: Size
    text_length: Size  # words


def _round(frames: int, block: int) -> int:
    """The multiple of ``block`` nearest to ``frames``, at least one block."""
    return max(block, round(frames / block) * block)
