"""A request to a checkpoint becomes the rollout that its card describes."""

from __future__ import annotations

import pytest
import torch
from students import save_student

from hiar.models.generator import Generator, load_generator
from hiar.schedule import step_sigmas
from hiar.stages.rollouts import make_rollout, walk_asked

THEIRS = {"given": "clean", "sinks": "stay", "context_noise": 0.0}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A student with no setting at its default."""
    folder = tmp_path_factory.mktemp("rollouts") / "student"
    schedule = {"teacher_shift": 2.0, "student_shift": 3.0, "renoise": "euler"}
    save_student(folder, "block_first", "finished", video={"sink_blocks": 2}, schedule=schedule, conventions=THEIRS)
    return load_generator(folder)


@pytest.mark.parametrize(("frames", "blocks", "given"), [(12, 4, 0), (12, 4, 2), (None, None, 0), (None, None, 1)])
def test_a_rollout_is_as_its_card_says(student: Generator, frames: int | None, blocks: int | None, given: int) -> None:
    channels, size, *area = student.block_shape
    text, clip = student.embed([""]), torch.zeros(1, channels, given * size, *area)
    changes = {3: student.embed(["a red disc moves left"])}
    walk = walk_asked(student.card, None, None)
    rollout = make_rollout(student, text, walk, frames, 5, [7], changes, clip if given else None)
    grid, card = rollout.grid, student.card
    assert (grid.blocks, grid.given, grid.rule.finished) == (blocks, given, True)
    assert (grid.steps, grid.window, grid.sinks) == (card.schedule.student_steps, card.video.window_blocks, 2)
    assert torch.equal(rollout.sigmas, step_sigmas(4, 3.0))
    assert (rollout.renoise, rollout.conventions, rollout.shape) == ("euler", card.conventions, student.block_shape)
    assert (rollout.seed, rollout.samples, rollout.changes) == (5, [7], changes)
