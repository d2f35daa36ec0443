"""The world's language: scenes to sentences and back.

A caption is ``a(n) COLOR SHAPE moves [SPEED] [DIRECTION] [on a(n) BACKGROUND background]``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch

from hiar.config import Background, Color, Shape, ShapesWorld
from hiar.errors import UserError, suggest
from hiar.worlds.shapes.scenes import Scenes, scenes

SPEEDS = ("slowly", "quickly")  # below and above the middle of world.speed
DIRECTIONS = (
    "right",
    "down",
    "left",
    "up",
)  # before the first bounce; by increasing angle, with y pointing down


@dataclass(frozen=True)
class Asked:
    """What a caption asks for; None where it leaves the choice open."""

    color: Color
    shape: Shape
    speed: str | None  # of SPEEDS
    direction: str | None  # of DIRECTIONS
    background: Background | None


def captions(world: ShapesWorld, *, seed: int, first: int, count: int) -> list[str]:
    """The captions of the clips ``first`` to ``first + count``, without rendering them."""
    return describe(world, scenes(world, seed=seed, first=first, count=count))


def describe(world: ShapesWorld, batch: Scenes) -> list[str]:
    """One sentence per scene, without the parts that ``batch.told`` leaves out."""
    return [sentence(scene) for scene in facts(world, batch)]


def facts(world: ShapesWorld, batch: Scenes) -> list[Asked]:
    """What each scene's caption says."""
    fast = batch.velocity.norm(dim=1) >= sum(world.speed) / 2
    angle = torch.atan2(batch.velocity[:, 1], batch.velocity[:, 0])
    quarter = (angle / (math.pi / 2)).round().long() % len(DIRECTIONS)
    columns = (batch.color, batch.shape, fast.long(), quarter, batch.background, batch.told)
    return [
        Asked(
            color=world.colors[color],
            shape=world.shapes[shape],
            speed=SPEEDS[speed] if told[0] else None,
            direction=DIRECTIONS[direction] if told[1] else None,
            background=world.backgrounds[background] if told[2] else None,
        )
        for color, shape, speed, direction, background, told in zip(*(c.tolist() for c in columns), strict=True)
    ]


def sentence(asked: Asked) -> str:
    """The sentence that asks for exactly this."""
    words = [_article(asked.color), asked.color, _spoken(asked.shape), "moves", asked.speed, asked.direction]
    if asked.background is not None:
        words += ["on", _article(asked.background), asked.background, "background"]
    return " ".join(word for word in words if word is not None)


def vocabulary(world: ShapesWorld) -> tuple[str, ...]:
    """Every word that a caption of this world may contain, once each, in an order that depends on the world alone."""
    words = ["a", "an", "moves", "on", "background", *SPEEDS, *DIRECTIONS, *world.colors]
    words += [word for shape in world.shapes for word in _spoken(shape).split()]
    words += world.backgrounds
    return tuple(dict.fromkeys(words))


def words_of(text: str) -> list[str]:
    """The words of a caption; case, spacing, commas and full stops do not matter."""
    return text.lower().replace(",", " ").replace(".", " ").split()


def parse_caption(world: ShapesWorld, text: str) -> Asked:
    """What ``text`` asks for.

    Raises UserError that names an unknown word or, when all are known, shows a valid sentence.
    """
    words = words_of(text)
    known = vocabulary(world)
    for word in words:
        if word not in known:
            raise UserError(f"prompt '{text}': unknown word '{word}'; {suggest(word, known)}")
    found = re.fullmatch(_grammar(world), " ".join(words))
    if found is None:
        example = sentence(Asked(world.colors[0], world.shapes[0], SPEEDS[0], DIRECTIONS[0], world.backgrounds[0]))
        raise UserError(f"prompt '{text}': not a sentence of this world; write one like '{example}'")
    return Asked(
        color=cast(Color, found["color"]),
        shape=next(shape for shape in world.shapes if _spoken(shape) == found["shape"]),
        speed=found["speed"],
        direction=found["direction"],
        background=cast("Background | None", found["background"]),
    )


def _grammar(world: ShapesWorld) -> str:
    def one_of(name: str, words: Iterable[str]) -> str:
        return f"(?P<{name}>{'|'.join(words)})"

    return (
        f"an? {one_of('color', world.colors)} {one_of('shape', map(_spoken, world.shapes))} moves"
        f"( {one_of('speed', SPEEDS)})?( {one_of('direction', DIRECTIONS)})?"
        f"( on an? {one_of('background', world.backgrounds)} background)?"
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _spoken(shape: Shape) -> str:
    return shape.replace("_", " ")
