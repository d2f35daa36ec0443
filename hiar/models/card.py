"""The card of a checkpoint: what is needed besides weights to generate with it. Reading it loads no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from hiar import config
from hiar.errors import UserError
from hiar.parameters import explain

CARD = "generator.json"


class Walk(config.Section):
    """How the student was trained to walk the grid."""

    order: config.Order
    context: config.Context
    level: config.ContextLevel | None = None  # of output context

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, said: Any) -> Any:
        """Without a level, as on cards from before there were several, output context is at the whole output level."""
        if not isinstance(said, dict) or "level" in said:
            return said
        return said | {"level": 1.0 if said.get("context") == "output" else None}

    @model_validator(mode="after")
    def _check(self) -> Self:
        config.require_level(self.context, self.level)
        return self


def walk_of(variant: config.Variant) -> Walk:
    """The walk of a method."""
    return Walk(order=variant.order, context=variant.context, level=variant.level)


class Card(config.Section):
    """What is needed besides weights to generate with a checkpoint, and where it came from."""

    stage: Literal["teacher", "init", "distill"]
    variant: str | None
    seed: Annotated[int, Field(ge=0)]
    walk: Walk | None  # none: a bidirectional teacher, or a causal init, which may be walked in any way
    guidance: float  # of the teacher; students use none
    solver_steps: config.Count  # of the teacher
    prediction: config.Prediction
    coordinates: bool
    world: config.World
    video: config.Video
    schedule: config.Schedule
    conventions: config.Conventions | None  # none: a teacher, which shows no context
    precision: config.Precision  # it was trained with, and computes in

    @field_validator("walk", mode="before")
    @classmethod
    def _renamed(cls, walk: Any) -> Any:
        """Older cards call the context of finished blocks clean."""
        former = {"order": "block_first", "context": "clean"}
        return walk | {"context": "finished"} if isinstance(walk, dict) and former.items() <= walk.items() else walk


def save_card(folder: Path, card: Card) -> None:
    """Write the card into an existing folder."""
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_card(folder: Path) -> Card:
    """The card of a checkpoint folder. Raises UserError when there is none or it is not valid."""
    path = folder / CARD
    try:
        return Card.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a checkpoint folder, such as artifacts/seed-0/init") from None
    except OSError as error:
        if folder.is_file():
            line = f"{folder}: is a file; name a folder, such as `hiar import` makes from a weights file"
            raise UserError(line) from None
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a checkpoint folder") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; make the checkpoint again") from None
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error, Card)}; make the checkpoint again") from None
