"""Training: optimisers, the stages that train, and the methods to compare."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hiar.config.section import (
    AttentionMode,
    Context,
    ContextLevel,
    Count,
    Decay,
    Digest,
    File,
    NonNegative,
    Order,
    Positive,
    Probability,
    Section,
    require_level,
    require_order,
)
from hiar.errors import require


def require_micro_batch(size: int | None, field: str, batch: int, given: int | None = None) -> None:
    """Raise BrokenRule if micro-batches of ``size``, or of ``given`` rollouts, do not divide a batch."""
    remedy = f"must divide {field} = {batch}" + (f", of which it takes {size}" if given else "")
    require(size is None or batch % size == 0, "micro_batch", given or size, remedy)


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
    ema: Decay | None  # decay of the averaged weights, which are kept; null: keep no average
    # Update from which weights are averaged. From the first one on (0), the decay rises to its value, so that early
    # weights are soon forgotten; an average that begins later has its full decay at once.
    ema_from: Annotated[int, Field(ge=0)]


class Training(Section):
    """A finite training run."""

    steps: Count
    batch: Count  # samples per update
    micro_batch: Count | None = None  # samples per backward, see Distill
    optimizer: Optimizer

    @model_validator(mode="after")
    def _check(self) -> Self:
        require_micro_batch(self.micro_batch, "batch", self.batch)
        return self


class Teacher(Section):
    training: Training | None  # null: adopted from the base model
    caption_dropout: Probability  # whole captions dropped, for classifier-free guidance
    sigma_floor: Positive  # noise levels below it get its weight in the loss
    solver_steps: Count  # Euler steps when it is sampled
    guidance: Positive  # CFG scale; 1: no guidance


class Pairs(Section):
    """Teacher ODE trajectories, kept at the student's levels."""

    count: Count
    # false: none are stored; init and distill solve the pairs they draw, each time, with their own copy of the teacher:
    # for when its solver_steps forwards are cheaper than the disk.
    stored: bool = True
    # Type that states are rounded to, whether or not they are stored; training reads them as float32.
    kept_in: Literal["bf16", "fp16"] | None = None  # null: float32
    source: File | None = None  # folder that `hiar import-pairs` wrote; null: made here
    source_sha256: Digest | None = None  # of its manifest, as with the world's prompts
    solver_steps: Count  # Euler steps, a multiple of the student's
    guidance: Positive
    batch: Count
    shard: Count  # trajectories per file

    @model_validator(mode="after")
    def _stored(self) -> Self:
        require(self.stored or self.source is None, "stored", self.stored, "imported pairs are stored; write true")
        remedy = "imported pairs keep their type; write null"
        require(self.kept_in is None or self.source is None, "kept_in", self.kept_in, remedy)
        return self


class Validation(Section):
    """Videos that a student makes during training, on a few prompts of their own; they change no weight."""

    every: Count  # steps, which in distill include the critic's warm-up; once more after the last
    prompts: Count
    frames: Count  # latent frames per video, as in samples
    metric: str  # of the world's judge: the best weights by it are kept in addition to the last ones
    bidirectional: bool  # also one block of a training clip's length, whose frames all attend to each other (Fig. 4)


class Levels(Section):
    """Noise levels drawn for a loss."""

    shift: Positive
    lowest: Probability  # levels are clamped to the range from lowest to highest
    highest: Probability

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.lowest < self.highest, "lowest", self.lowest, f"should be below highest = {self.highest}")
        return self


class Distill(Section):
    """Self-rollout distillation: DMD with a critic, plus the forward-KL regulariser of a variant."""

    steps: Count  # generator updates
    batch: Count  # rollouts per generator update
    micro_batch: Count | None = None  # rollouts per backward; null: a process's share. Changes only rounding
    windows: Count  # training windows that one rollout spans; 1 in the paper
    real_score: File | None  # folder of its model, for instance larger than the teacher; null: the teacher
    real_score_sha256: Digest | None = None  # of its transformer, as with the world's prompts
    guidance: Positive  # CFG scale of the real score
    critic_updates: Count  # per generator update
    critic_warmup: Annotated[int, Field(ge=0)]  # critic updates before the first generator update
    critic_batch: Count  # windows per critic update
    critic_floor: NonNegative  # noise levels below it get its weight in the critic's loss; 0: no floor
    replay: Count | None  # batches of newest rollouts that the critic draws from; null: fresh ones for each update
    levels: Levels  # at which DMD evaluates its scores and the critic is trained
    generator: Optimizer
    critic: Optimizer  # its last weights are used, not an average: ema is null
    validation: Validation | None = None  # null: none

    @property
    def warmup_steps(self) -> int:
        """Steps before the first generator update, in which only the critic is trained."""
        return -(-self.critic_warmup // self.critic_updates)

    @property
    def all_steps(self) -> int:
        """Generator updates, and the steps before them."""
        return self.warmup_steps + self.steps

    @property
    def critic_rollouts(self) -> int:
        """Rollouts made only for the critic."""
        own = self.all_steps * self.critic_updates * (self.critic_batch // self.windows)
        return own if self.replay is None else 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(
            self.replay is not None or self.critic_batch % self.windows == 0,
            "critic_batch",
            self.critic_batch,
            f"without a replay, must be a multiple of windows = {self.windows}, which each rollout spans",
        )
        require_micro_batch(self.micro_batch, "batch", self.batch)
        windows = self.micro_batch and self.micro_batch * self.windows
        require_micro_batch(windows, "critic_batch", self.critic_batch, self.micro_batch)
        return self


class ForwardKL(Section):
    """Eq. 10-11."""

    weight: Positive  # lambda
    steps: Count  # K: the student's first steps, which are regularised
    attention: AttentionMode


LevelBound = Annotated[float, Field(ge=0, le=2)]


class Variant(Section):
    """A method: how the grid is walked, what context a block sees, what DMD trains on, and what is added to it."""

    order: Order
    context: Context
    level: ContextLevel | None  # of output context: 0 is clean, 1 the step's output level (HiAR), 2 its input level
    forward_kl: ForwardKL | None
    # For output context, in training: each update draws its rollouts' level uniformly between these bounds. null: it
    # is the level at which the student is sampled.
    drawn: Annotated[tuple[LevelBound, LevelBound], Field(strict=False)] | None = None
    # What DMD trains on. null: the student's own rollouts; diffusion: clean videos of the pairs, each block noised to
    # its own level and denoised in one causal forward (CausVid).
    forcing: Literal["diffusion"] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        require_order(self.order, self.context)
        require_level(self.context, self.level)
        if self.drawn is not None:
            low, high = self.drawn
            remedy = "should be bounds of output context's level, the lower one first, or null"
            require(self.context == "output" and self.forcing is None and low < high, "drawn", [low, high], remedy)
        return self
