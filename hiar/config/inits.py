"""The causal student before distillation: a section for each way to make it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from hiar.config.section import Count, Digest, File, Positive, Section
from hiar.config.training import Training, Validation
from hiar.errors import require

# Of noise levels, beyond the floor: even, or as `losses.flow.bell_weights` has it.
Weighting = Literal["even", "bell"]


class _Made(Section):
    """Properties of every init; dictionaries are keyed by field names."""

    validation: Validation | None = None  # during training; null: none

    @property
    def trainings(self) -> dict[str, Training]:
        """Its training runs, in order."""
        return {}

    @property
    def sources(self) -> dict[str, tuple[Path, str | None]]:
        """The foreign checkpoints that it adopts, each with the set of weights to take."""
        return {}

    @property
    def solvers(self) -> dict[str, int]:
        """The step counts of solvers that must visit the student's levels."""
        return {}

    @property
    def regresses_pairs(self) -> bool:
        """Whether it trains on the states of the pairs, at all of the student's levels."""
        return False


class Adopted(_Made):
    """A student trained with other code."""

    kind: Literal["adopted"]
    source: File  # whatever `hiar import` reads, of the base's size
    source_sha256: Digest | None = None  # of its contents, as with the world's prompts
    weights: str | None = None  # which of its sets of weights, if there are several

    @property
    def sources(self) -> dict[str, tuple[Path, str | None]]:
        return {"source": (self.source, self.weights)}

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.validation is None, "validation", "{...}", "an adopted student is not trained; use null")
        return self


class Trained(_Made):
    training: Training

    @field_validator("training", mode="before")
    @classmethod
    def _there(cls, training: Any) -> Any:
        remedy = "is missing; give it, or for an imported student use kind: adopted with its source"
        require(training is not None, "", training, remedy)
        return training

    @property
    def trainings(self) -> dict[str, Training]:
        return {"training": self.training}


class Ode(Trained):
    """Regression on the trajectories of the bidirectional teacher (CausVid, Self-Forcing, HiAR)."""

    kind: Literal["ode"]
    sigma_floor: Positive  # like the teacher's

    @property
    def regresses_pairs(self) -> bool:
        return True


class TeacherForcing(Trained):
    """Flow matching of each block on clean context: the causal teacher itself (Causal-Forcing's first stage)."""

    kind: Literal["teacher_forcing"]
    sigma_floor: Positive
    weighting: Weighting = "even"


class CausalTeacher(Section):
    """The causal teacher that another kind learns from: trained first, as above, or adopted."""

    training: Training | None  # null: adopted from ``source``
    sigma_floor: Positive
    weighting: Weighting = "even"
    source: File | None = None
    source_sha256: Digest | None = None
    weights: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        remedy = "give training, or a source to adopt and training: null"
        require((self.source is None) != (self.training is None), "source", self.source, remedy)
        return self


class Causal(Trained):
    """A kind that learns from a causal teacher."""

    teacher: CausalTeacher

    @property
    def trainings(self) -> dict[str, Training]:
        first = {"teacher.training": self.teacher.training} if self.teacher.training else {}
        return first | super().trainings

    @property
    def sources(self) -> dict[str, tuple[Path, str | None]]:
        source = self.teacher.source
        return {} if source is None else {"teacher.source": (source, self.teacher.weights)}


class CausalPairs(Section):
    """The causal teacher's trajectories, like `Pairs`; made in the stage, and deleted when it ends."""

    count: Count
    solver_steps: Count  # Euler steps, a multiple of the student's
    guidance: Positive
    batch: Count
    shard: Count  # trajectories a file


class CausalOde(Causal):
    """Regression on the trajectories of the causal teacher (Causal-Forcing)."""

    kind: Literal["causal_ode"]
    pairs: CausalPairs | None  # null: the experiment's own pairs, which are imported (pairs.source)
    sigma_floor: Positive

    @property
    def solvers(self) -> dict[str, int]:
        return {} if self.pairs is None else {"pairs.solver_steps": self.pairs.solver_steps}

    @property
    def regresses_pairs(self) -> bool:
        return self.pairs is None


class Consistency(Causal):
    """Causal consistency distillation, which needs no trajectories (Causal-Forcing++)."""

    kind: Literal["consistency"]
    solver_steps: Count  # N: across each, the student learns to agree with its average; a multiple of its own steps
    guidance: Positive  # CFG scale of the causal teacher's step

    @property
    def solvers(self) -> dict[str, int]:
        return {"solver_steps": self.solver_steps}

    @model_validator(mode="after")
    def _check(self) -> Self:
        optimizer = self.training.optimizer
        remedy = "its target is the student's average; give a decay, such as 0.99"
        require(optimizer.ema is not None, "training.optimizer.ema", optimizer.ema, remedy)
        remedy = "its target is the student's average from the first update on; use 0"
        require(optimizer.ema_from == 0, "training.optimizer.ema_from", optimizer.ema_from, remedy)
        return self


Init = Annotated[Adopted | Ode | TeacherForcing | CausalOde | Consistency, Field(discriminator="kind")]
