"""The types of ``params.yaml``: frozen, validated sections; the numbers themselves live in that file only.

Every field is required and unknown keys are errors, so that a typo cannot pass silently and no default hides in code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hiar.errors import BrokenRule, UserError, require, suggest

Order = Literal["block_first", "step_first", "diagonal"]
Context = Literal["clean", "output", "input", "shared"]
Passes = Literal["separate", "fused", "batched"]
Prediction = Literal["flow", "x0"]
AttentionMode = Literal["bidirectional", "causal"]
Renoise = Literal["sde", "euler"]
Precision = Literal["no", "bf16"]  # accelerate's mixed precision
Shape = Literal["disc", "wide_bar", "tall_bar", "square", "diamond", "ring"]
Color = Literal["red", "green", "blue", "yellow", "magenta", "cyan", "orange", "white"]
Background = Literal["black", "grey", "navy", "brown", "teal", "olive"]

SEEDS = 2**63  # what torch's generators take
THREADS = 1024  # more than any machine has cores; torch dies of a hundred thousand

# Upper bounds keep numbers that are typing errors from becoming overflows, and sizes from products beyond 64 bits.
Count = Annotated[int, Field(ge=1, le=10**9)]
Size = Annotated[int, Field(ge=1, le=2**14)]  # of a tensor along one dimension
Positive = Annotated[float, Field(gt=0, le=1e9)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Probability = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running average
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)]  # a part of a path


class Section(BaseModel):
    """A part of params.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def require_order(order: Order, context: Context) -> None:
    """Raise BrokenRule for an order in which no block finds its context."""
    remedy = "shared context is left by a later step of the block before; use block_first or diagonal"
    require(context != "shared" or order != "step_first", "order", order, remedy)


def _distinct(items: Sequence[object]) -> Sequence[object]:
    """The list, refused when it holds the same twice: that would be run, shown and counted twice."""
    first: dict[object, int] = {}
    for place, item in enumerate(items, start=1):
        if item in first:
            remedy = f"holds {item!r} twice, at places {first[item]} and {place}; leave one of them out"
            raise BrokenRule("", items, remedy)
        first[item] = place
    return items


Distinct = AfterValidator(_distinct)


class World(Section):
    """The procedural video world: one moving shape on a plain background."""

    size: Annotated[int, Field(ge=1, le=4096)]  # pixels a side
    shapes: Annotated[list[Shape], Field(min_length=1), Distinct]
    colors: Annotated[list[Color], Field(min_length=1), Distinct]
    backgrounds: Annotated[list[Background], Field(min_length=1), Distinct]
    radius: Positive  # half the longer side of a shape, in pixels
    speed: Annotated[tuple[Positive, Positive], Field(strict=False)]  # slowest and fastest, pixels a frame
    camera: NonNegative  # fastest pan of the striped backdrop, pixels a frame; 0: plain backdrop
    caption_dropout: Probability  # chance that a caption leaves out speed, direction or background (each by itself)
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


class Video(Section):
    """The geometry of latent videos, in latent frames."""

    frames: Count  # of a training clip, and of the teacher
    block: Count  # k: frames denoised together
    window: Count  # frames the student attends to, its own block included
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
    """How context is shown where public implementations differ; a checkpoint's card keeps its own."""

    given: Literal["level", "clean"]  # given blocks: at the level of the method's context, or clean as the originals do
    sinks: Literal["turn", "stay"]  # sinks keep their distance to a sliding window, or their first position
    context_noise: Annotated[float, Field(ge=0, lt=1)]  # level at which clean contexts are written; the paper's is 0


class Schedule(Section):
    """Noise levels (Eq. 1-3)."""

    teacher_shift: Positive
    student_shift: Positive
    student_steps: Count  # S
    renoise: Renoise  # how a student state moves to the next level


class Muon(Section):
    lr: Positive
    weight_decay: NonNegative


class AdamW(Section):
    lr: Positive
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)]
    weight_decay: NonNegative


class Optimizer(Section):
    """Muon for the matrices of the transformer blocks, AdamW for everything else; without muon, AdamW for all."""

    adamw: AdamW
    muon: Muon | None
    warmup: Annotated[int, Field(ge=0, le=10**9)]  # updates of linear warm-up
    decay: Literal["constant", "cosine"]
    clip: Positive  # largest gradient norm
    ema: Decay | None  # decay of the averaged weights that are kept; null: keep no average
    ema_from: Annotated[int, Field(ge=0)]  # update from which weights are averaged


class Training(Section):
    """A finite training run."""

    steps: Count
    batch: Count  # samples an update
    optimizer: Optimizer


class Codec(Section):
    """Pixels <-> latents: a fixed linear patch encoder and a trained convolutional decoder."""

    patch: Size  # pixels a side that become one latent pixel
    channels: Size
    width: Size  # channels of the decoder's refiner
    depth: Size  # its residual layers, two convolutions each
    noise: Probability  # the decoder is trained on latents with noise of standard deviation up to this
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
    patch: Size  # latent pixels a side of one token
    prediction: Prediction
    coordinates: bool  # two input channels with x and y, for models of several tokens a frame
    text_dim: Size
    text_length: Size  # words


class Teacher(Section):
    training: Training
    caption_dropout: Probability  # whole captions dropped, for classifier-free guidance
    sigma_floor: Positive  # levels under it weigh no more than it does in the loss
    solver_steps: Count  # Euler steps when it is sampled
    guidance: Positive  # usual notation: 1 is none


class Pairs(Section):
    """Teacher ODE trajectories, kept at the student's levels."""

    count: Count
    solver_steps: Count  # Euler steps, a multiple of the student's
    guidance: Positive
    batch: Count
    shard: Count  # trajectories a file


class Init(Section):
    training: Training
    sigma_floor: Positive  # as the teacher's


class Levels(Section):
    """Noise levels that are drawn for a loss."""

    shift: Positive
    lowest: Probability  # levels are clamped to the range between these two
    highest: Probability

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.lowest < self.highest, "lowest", self.lowest, f"should be under highest = {self.highest}")
        return self


class Distill(Section):
    """Self-rollout distillation: DMD with a critic, plus the forward-KL regulariser of a variant."""

    steps: Count  # generator updates
    batch: Count  # rollouts a generator update
    windows: Count  # training windows one rollout spans; the paper's is 1
    guidance: Positive  # of the real score, usual notation
    critic_updates: Count  # a generator update
    critic_warmup: Annotated[int, Field(ge=0)]  # critic updates before the first generator update
    critic_batch: Count  # windows a critic update
    critic_floor: NonNegative  # levels under it weigh no more than it does in the critic's loss; 0: no floor
    replay: Count | None  # newest rollouts the critic draws from, in batches; null: fresh ones for each of its updates
    levels: Levels  # at which the scores of DMD are taken, and the critic learns
    generator: Optimizer
    critic: Optimizer  # the critic itself is used, not its average: ema is null

    @property
    def warmup_steps(self) -> int:
        """Steps before the first generator update, in which the critic alone learns."""
        return -(-self.critic_warmup // self.critic_updates)

    @property
    def all_steps(self) -> int:
        """Generator updates, and the steps before them."""
        return self.warmup_steps + self.steps

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(
            self.replay is not None or self.critic_batch % self.windows == 0,
            "critic_batch",
            self.critic_batch,
            f"without a replay, must be a multiple of windows = {self.windows}, which each rollout spans",
        )
        return self


class ForwardKL(Section):
    """Eq. 10-11."""

    weight: Positive  # lambda
    steps: Count  # K: first steps of the student that are regularised
    attention: AttentionMode


class Variant(Section):
    """A method: how the grid is walked, what context a block sees, and what is added to DMD."""

    order: Order
    context: Context
    forward_kl: ForwardKL | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        require_order(self.order, self.context)
        return self


class Compare(Section):
    """What the comparison holds: the walks the causal init is sampled with, and the variants distilled."""

    init: Annotated[list[Name], Distinct]
    distill: Annotated[list[Name], Distinct]


class Sample(Section):
    videos: Count
    frames: Count
    caption_dropout: Probability  # as the world's, of the prompts; 0: nothing is left to the model's choice
    batch: Count


class Score(Section):
    """Oracle thresholds and the comparison's segments."""

    good_residual: Positive  # root mean square pixel error under which a frame is good, in [0, 1] units
    good_color: Positive  # largest colour error of a good frame
    hop: Positive  # displacement between frames that counts as a hop, pixels
    segments: Count  # a video is cut into for drift


class Report(Section):
    videos: Count  # shown side by side


class Runtime(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Precision  # of training, and of what the checkpoint then generates
    threads: Count  # CPU threads of a stage that runs alone
    variant_threads: Count  # CPU threads of the stages of one variant, which run side by side
    checkpoint_minutes: Positive  # between resumable checkpoints


class Params(Section):
    """The whole experiment."""

    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=SEEDS)]], Field(min_length=1), Distinct]
    world: World
    video: Video
    conventions: Conventions
    schedule: Schedule
    codec: Codec
    model: Model
    teacher: Teacher
    pairs: Pairs
    init: Init
    distill: Distill
    variants: dict[Name, Variant]
    compare: Compare
    sample: Sample
    score: Score
    report: Report
    runtime: Runtime

    @model_validator(mode="after")
    def _check(self) -> Self:
        k = self.video.block
        latent = self.world.size // self.codec.patch
        require(
            self.world.size % self.codec.patch == 0,
            "codec.patch",
            self.codec.patch,
            f"must divide world.size = {self.world.size}",
        )
        require(
            latent % self.model.patch == 0,
            "model.patch",
            self.model.patch,
            f"must divide the {latent} latent pixels a side",
        )
        require(
            self.sample.frames % k == 0, "sample.frames", self.sample.frames, f"must be a multiple of video.block = {k}"
        )
        require(
            self.video.sink_blocks == 0 or self.video.frames <= self.video.window,
            "video.sink_blocks",
            self.video.sink_blocks,
            f"training clips must fit in the window of {self.video.window} frames when there are sinks; use 0",
        )
        for field, threads in (
            ("runtime.threads", self.runtime.threads),
            ("runtime.variant_threads", self.runtime.variant_threads),
        ):
            require(threads <= THREADS, field, threads, f"should be at most {THREADS}; give the number of cores")
        shortest = max(self.score.segments, 4)
        for field, frames in (("video.frames", self.video.frames), ("sample.frames", self.sample.frames)):
            require(frames >= shortest, field, frames, f"scoring needs at least {shortest} frames")
        require(
            self.report.videos <= self.sample.videos,
            "report.videos",
            self.report.videos,
            f"cannot exceed sample.videos = {self.sample.videos}",
        )
        require(
            self.pairs.solver_steps % self.schedule.student_steps == 0,
            "pairs.solver_steps",
            self.pairs.solver_steps,
            f"must be a multiple of schedule.student_steps = {self.schedule.student_steps}",
        )
        for field, names in (("compare.init", self.compare.init), ("compare.distill", self.compare.distill)):
            for name in names:
                require(name in self.variants, field, name, f"no such variant; {suggest(name, self.variants)}")
        for name, variant in self.variants.items():
            kl = variant.forward_kl
            require(
                kl is None or kl.steps <= self.schedule.student_steps,
                f"variants.{name}.forward_kl.steps",
                kl and kl.steps,
                f"cannot exceed schedule.student_steps = {self.schedule.student_steps}",
            )
        return self

    def variant(self, name: str) -> Variant:
        """The variant of that name. Raises UserError when there is none."""
        if name not in self.variants:
            raise UserError(f"variant '{name}': no such variant; {suggest(name, self.variants)}")
        return self.variants[name]


def _round(frames: int, block: int) -> int:
    """The multiple of ``block`` nearest to ``frames``, at least one block."""
    return max(block, round(frames / block) * block)
