"""The language of captions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shape_worlds import DEFAULT, WHOLE_FAMILY, worlds

from hiar.config import ShapesWorld
from hiar.errors import UserError
from hiar.worlds.shapes.captions import captions, facts, parse_caption, vocabulary
from hiar.worlds.shapes.render import clips
from hiar.worlds.shapes.scenes import scenes


@settings(max_examples=40)
@given(worlds(), st.integers(0, 1000))
def test_parsing_a_caption_gives_what_the_scene_says(world: ShapesWorld, seed: int) -> None:
    batch = scenes(world, seed=seed, first=0, count=10)
    texts = captions(world, seed=seed, first=0, count=10)
    assert [parse_caption(world, text) for text in texts] == facts(world, batch)
    known = set(vocabulary(world))
    assert all(set(text.split()) <= known and len(text.split()) <= 11 for text in texts)


def test_colour_and_shape_are_always_named_and_the_rest_by_caption_dropout() -> None:
    world = DEFAULT.model_copy(update={"caption_dropout": 0.25})
    parsed = [parse_caption(world, text) for text in captions(world, seed=0, first=0, count=1000)]
    for field in ("speed", "direction", "background"):
        named = sum(getattr(one, field) is not None for one in parsed)
        assert 690 < named < 810
    assert {one.speed for one in parsed} == {None, "slowly", "quickly"}
    assert {one.direction for one in parsed} == {None, "left", "right", "up", "down"}


def test_words_tell_the_motion() -> None:
    world = DEFAULT.model_copy(update={"caption_dropout": 0.0})
    batch = scenes(world, seed=0, first=0, count=200)
    towards = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}
    for fact, (x, y) in zip(facts(world, batch), batch.velocity.tolist(), strict=True):
        assert fact.direction is not None
        along = x * towards[fact.direction][0] + y * towards[fact.direction][1]
        speed = (x * x + y * y) ** 0.5
        assert along >= speed * 0.707
        assert fact.speed == ("quickly" if speed >= sum(DEFAULT.speed) / 2 else "slowly")


def test_captions_are_those_of_the_clips() -> None:
    assert captions(DEFAULT, seed=4, first=7, count=5) == clips(DEFAULT, seed=4, first=7, count=5, frames=1)[1]


def test_vocabulary_is_stable_and_without_repetition() -> None:
    words = vocabulary(WHOLE_FAMILY)
    assert words == vocabulary(WHOLE_FAMILY)
    assert len(words) == len(set(words))
    assert words[:2] == ("a", "an")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a rde disc moves", "unknown word 'rde'; did you mean 'red'"),
        ("a red zeppelin moves", "unknown word 'zeppelin'"),
        ("a white disc moves", "unknown word 'white'"),  # a colour, but not of this world
        ("a disc moves", "not a sentence of this world; write one like 'a red disc moves slowly"),
        ("a red bar moves", "not a sentence"),
        ("a red disc moves left slowly", "not a sentence"),
        ("", "not a sentence"),
    ],
)
def test_captions_of_other_worlds_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        parse_caption(DEFAULT, text)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_case_spacing_and_full_stop_do_not_matter() -> None:
    plain = parse_caption(DEFAULT, "a red wide bar moves slowly left on a navy background")
    assert parse_caption(DEFAULT, "  A red  wide bar moves slowly left on a navy background. ") == plain
