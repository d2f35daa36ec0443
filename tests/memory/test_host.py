"""Host memory of a training: networks that stay where they were loaded, and states that are being written."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import ROOT

from hiar.memory.counting import network_bytes
from hiar.memory.disk import disk
from hiar.memory.host import RESULT, STATE, host, most
from hiar.memory.networks import Models, make_meta, meta_role, open_models, role_bytes
from hiar.parameters import merge, parse_params, read_yaml
from hiar.workspace import experiment_params


@pytest.fixture(scope="module")
def recipe() -> Models:
    return open_models(experiment_params(ROOT, "wan2.1-1.3b"))


def test_distillation_holds_its_sources_and_a_state_or_finally_its_student(recipe: Models) -> None:
    """The state is that of the disk's plan; each process holds its part."""
    params = recipe.sizes.params
    student = network_bytes(make_meta(params, recipe.student, half=False))
    state = disk(recipe)["states of a training"] // 2
    assert host(recipe, "distill", 1) == {"init": student, "teacher": student, STATE: state, RESULT: student}
    assert most(host(recipe, "distill", 1)) == 2 * student + state
    eight = host(recipe, "distill", 8)
    assert eight[STATE] == -(-state // 8) < student == eight[RESULT]
    assert most(eight) == 3 * student


def test_a_teacher_used_as_real_score_has_no_host_copy_and_an_init_has_only_its_teachers() -> None:
    params = parse_params(merge(read_yaml(ROOT / "params.yaml"), {"distill": {"real_score": None}}), Path("own"))
    models = open_models(params)
    assert [*host(models, "distill", 1)] == ["init", STATE, RESULT]
    init = host(models, "init", 2)
    assert [*init] == ["teacher", STATE, RESULT]
    weights = network_bytes(make_meta(params, models.student, half=False))
    assert weights < 2 * init[STATE] < 4.1 * weights  # with the average, and Muon's one or AdamW's two moments


def test_of_an_init_with_two_trainings_one_state_at_a_time_is_in_memory() -> None:
    """The causal teacher is trained before the student."""
    kind = {"init": read_yaml(ROOT / "experiments" / "init-consistency.yaml")["init"]}
    models = open_models(parse_params(merge(read_yaml(ROOT / "params.yaml"), kind), Path("two trainings")))
    *others, last = models.sizes.params.init.trainings.values()
    assert others
    held = role_bytes(meta_role(models, last.optimizer))
    assert host(models, "init", 1)[STATE] == sum(held.values()) - held["gradients"]
