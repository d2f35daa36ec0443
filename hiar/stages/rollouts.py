"""Requests as rollouts: how a checkpoint walks the grid, and which videos it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from hiar.config import Context, ContextLevel, Order
from hiar.errors import BrokenRule, UserError, require
from hiar.grid import check_walk, make_grid
from hiar.models.card import Card, Walk
from hiar.models.generator import Generator
from hiar.parameters import explain
from hiar.rollout.cell import OURS, Rollout
from hiar.schedule import student_sigmas

DEFAULT_WALK = Walk(order="step_first", context="output")  # of an init, which was trained for no walk


def walk_asked(card: Card, order: Order | None, context: Context | None, level: ContextLevel | None = None) -> Walk:
    """A student's walk: as trained, except for what is given here. Raises UserError if that is no legal walk.

    If ``context`` is output and the student was trained with another one, its level is 1 unless given.
    """
    trained = card.walk or DEFAULT_WALK
    asked: dict[str, Any] = {"order": order or trained.order, "context": context or trained.context}
    if level is not None:
        if asked["context"] != "output":
            raise UserError(f"--level: the level of {asked['context']} context is fixed; leave it out")
        asked["level"] = level
    elif asked["context"] == trained.context:
        asked["level"] = trained.level
    try:
        walk = Walk.model_validate(asked)
        if isinstance(walk.level, tuple):
            steps = card.schedule.student_steps
            remedy = f"give one number, or {steps - 1}, one for each of the {steps} steps but the last"
            require(len(walk.level) == steps - 1, "level", walk.level, remedy)
        check_walk(walk.order, walk.context, "separate")
    except ValidationError as error:
        raise UserError(f"--{explain(error, Walk)}") from None
    except BrokenRule as error:
        raise UserError(f"--{error.field} = {error.value}: {error.remedy}") from None
    return walk


def make_rollout(
    source: Generator,
    text: Tensor,
    walk: Walk,
    frames: int | None,
    seed: int,
    numbers: Sequence[int],
    changes: Mapping[int, Tensor] | None = None,
    given: Tensor | None = None,
) -> Rollout:
    """The rollout of videos ``numbers`` with prompts ``text`` (B, words, dim), endless when ``frames`` is None.

    changes: later texts, by the block from which they apply. given: latents (1, C, f, h, w) that videos begin with.
    """
    card = source.card
    block = card.video.block
    grid = make_grid(
        walk.context,
        walk.level,
        blocks=None if frames is None else frames // block,
        steps=card.schedule.student_steps,
        window=card.video.window_blocks,
        sinks=card.video.sink_blocks,
        given=0 if given is None else given.shape[2] // block,
    )
    sigmas = student_sigmas(card.schedule)
    renoise, conventions = card.schedule.renoise, card.conventions or OURS
    return Rollout(grid, sigmas, source.block_shape, renoise, seed, numbers, text, changes or {}, conventions)
