"""Levels of the context as data: in params.yaml, on cards, on the command line."""

import json

import pytest
from commands import hiar
from sampled import ROOT
from students import save_student

from hiar.config import Schedule
from hiar.errors import UserError
from hiar.models.card import CARD, Walk, load_card, save_card, walk_of
from hiar.models.generator import load_generator
from hiar.parameters import merge, parse_params, read_yaml
from hiar.stages.rollouts import make_rollout, walk_asked


def params(**variant):
    plain = {"order": "step_first", "context": "output", "level": 1.0, "forward_kl": None}
    return parse_params(merge(read_yaml(ROOT / "params.yaml"), {"variants": {"mine": plain | variant}}), "mine.yaml")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("levels") / "student"
    save_student(folder)
    return folder


@pytest.mark.parametrize("level", [0.0, 1.0, 0.85, 1.5, [0.8, 1.0, 1.25]])
def test_a_variants_level_reaches_the_rollout_by_the_card(student, tmp_path, level):
    walk = walk_of(params(level=level).variant("mine"))
    save_card(tmp_path, load_card(student).model_copy(update={"walk": walk}))
    card = load_card(tmp_path)
    assert card.walk == walk
    source = load_generator(student)
    rollout = make_rollout(source, source.embed([""]), walk_asked(card, None, None), 6, 0, [0])
    sigmas = rollout.sigmas.tolist()
    levels = level if isinstance(level, list) else [level] * (4 if level > 1 else 3)
    shown = [
        c * sigmas[step + 1] if c < 1 else (2 - c) * sigmas[step + 1] + (c - 1) * sigmas[step]
        for step, c in enumerate(levels)
        if c != 1
    ]
    assert rollout.levels[5:].tolist() == pytest.approx(shown)


def test_a_card_without_a_level_means_the_output_level(student, tmp_path):
    card = json.loads((student / CARD).read_text())
    assert card["walk"].pop("level") == 1.0
    (tmp_path / CARD).write_text(json.dumps(card))
    assert load_card(tmp_path).walk == Walk(order="step_first", context="output", level=1.0)
    card["walk"] = {"order": "block_first", "context": "clean"}  # the former name of finished context
    (tmp_path / CARD).write_text(json.dumps(card))
    assert load_card(tmp_path).walk == Walk(order="block_first", context="finished", level=None)


@pytest.mark.parametrize(
    ("variant", "line"),
    [
        ({"level": 2.5}, "variants.mine.level = 2.5: should be a number from 0 to 2, or a list of such"),
        ({"level": "high"}, "variants.mine.level = 'high': should be a number from 0 to 2, or a list of such"),
        ({"level": []}, "variants.mine.level = []: should be a number from 0 to 2, or a list of such"),
        ({"level": None}, "variants.mine.level = None: 0 is clean, 1.0 the step's output level, 2.0 its input"),
        ({"level": [0.8, 1.0]}, "variants.mine.level = (0.8, 1.0): give one number, or 3: one for each of"),
        ({"level": 0.5, "context": "input"}, "variants.mine.level = 0.5: the level of input context is fixed"),
    ],
)
def test_invalid_levels_of_variants_are_refused(variant, line):
    with pytest.raises(UserError) as caught:
        params(**variant)
    assert str(caught.value).startswith(f"mine.yaml: {line}")


@pytest.mark.parametrize(
    ("asked", "level"),
    [
        ((None, None, None), 0.85),
        (("diagonal", "output", None), 0.85),
        ((None, "input", None), None),
        ((None, None, (0.5, 1.0, 1.0)), (0.5, 1.0, 1.0)),
    ],
)
def test_a_walk_is_as_trained_unless_requested_otherwise(student, asked, level):
    card = load_card(student)
    trained = card.model_copy(update={"walk": Walk(order="step_first", context="output", level=0.85)})
    assert walk_asked(trained, *asked).level == level
    clean = card.model_copy(update={"walk": Walk(order="step_first", context="clean")})
    assert walk_asked(clean, None, "output").level == 1.0


def test_invalid_requested_walks_and_levels_are_refused(student):
    card = load_card(student)
    with pytest.raises(UserError, match=r"--level = \(0\.5, 0\.5\): give one number, or 3, one for each"):
        walk_asked(card, None, None, (0.5, 0.5))
    with pytest.raises(UserError, match="--order = step_first: finished context needs finished blocks; use block"):
        walk_asked(card, None, "finished")
    with pytest.raises(UserError, match="--context = clean: is a step's x0 prediction, for the other order"):
        walk_asked(card, "block_first", "clean")
    with pytest.raises(UserError, match="--level: the level of clean context is fixed; leave it out"):
        walk_asked(card, None, "clean", 0.5)
    two = Schedule(teacher_shift=4.0, student_shift=4.0, student_steps=2, renoise="sde")
    assert walk_asked(card.model_copy(update={"schedule": two}), None, None, (0.5,)).level == (0.5,)


@pytest.mark.parametrize(
    ("level", "line"),
    [
        ("much", "--level = much: is not a number; write one such as 0.85, or several like 0.8,1,1"),
        ("2.2", "--level = 2.2: should be 0 to 2; 0 is clean, 1 the step's output level, 2 its input level"),
        ("nan", "--level = nan: should be 0 to 2; 0 is clean, 1 the step's output level, 2 its input level"),
    ],
)
def test_invalid_levels_on_the_command_line_are_refused(student, level, line):
    run = hiar(
        *("sample", "--checkpoint", student, "--prompt", "a red disc moves", "--frames", 6, "--out", "out"),
        *("--level", level),
        folder=student,
        code=2,
    )
    assert run.stderr == f"error: {line}\n"
    assert not (student / "out").exists()
