"""Every kind of init as a stage: from a teacher and its pairs to a checkpoint that distils."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hiar.config import Params
from hiar.errors import UserError
from hiar.io.artifacts import read_manifest
from hiar.models.generator import load_generator
from hiar.parameters import merge, parse_params, read_yaml
from hiar.stages import distill, init
from hiar.stages.inits import causal_ode, teacher_forcing

MADE = Path("artifacts", "seed-0")
WEIGHTS = MADE / "init" / "transformer" / "diffusion_pytorch_model.safetensors"
OPTIMIZER = {
    "adamw": {"lr": 0.002, "betas": [0.9, 0.99], "weight_decay": 0.0},
    "muon": None,
    "warmup": 0,
    "decay": "constant",
    "clip": 1.0,
    "ema": 0.5,
    "ema_from": 0,
}
TRAINING = {"steps": 2, "batch": 4, "optimizer": OPTIMIZER}
TEACHER = {"training": TRAINING, "sigma_floor": 0.5}
PAIRS = {"count": 5, "solver_steps": 4, "guidance": 1.5, "batch": 2, "shard": 3}
KINDS: dict[str, dict[str, Any]] = {
    "teacher_forcing": {"training": TRAINING, "sigma_floor": 0.5},
    "causal_ode": {"teacher": TEACHER, "pairs": PAIRS, "training": TRAINING, "sigma_floor": 0.5},
    "consistency": {"teacher": TEACHER, "solver_steps": 4, "guidance": 1.5, "training": TRAINING},
}
SMALL = {"distill": {"steps": 1, "batch": 2, "windows": 1, "critic_warmup": 0, "critic_batch": 2}}
CAUSVID = {"order": "block_first", "context": "finished", "level": None, "forward_kl": None, "forcing": "diffusion"}


def asked(smoke: Path, kind: str, **changes: Any) -> Params:
    tree = merge(read_yaml(smoke / "params.yaml"), SMALL | {"variants": {"causvid": CAUSVID}})
    return parse_params(merge(tree, {"init": {"kind": kind} | KINDS[kind] | changes}), Path("params.yaml"))


@pytest.fixture
def work(smoke: Path, tmp_path: Path) -> Path:
    """A folder with the smoke experiment's teacher and pairs."""
    for name in ("teacher", "pairs"):
        shutil.copytree(smoke / MADE / name, tmp_path / MADE / name)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_student_that_distils(kind: str, smoke: Path, work: Path) -> None:
    params = asked(smoke, kind)
    init.run(params, work, 0)
    made, teacher = load_generator(work / MADE / "init"), load_generator(work / MADE / "teacher")
    assert (made.card.stage, made.card.walk) == ("init", None)
    before = teacher.denoiser.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in made.denoiser.state_dict().items())
    assert read_manifest(work / MADE / "init", "checkpoint")["settings"]["init"]["kind"] == kind
    assert list((work / MADE).rglob(".*")) == []  # no scratch is left
    for variant in ("self-forcing", "causvid"):
        distill.run(params, work, 0, variant)
        assert load_generator(work / MADE / "distill" / variant).card.walk is not None


def test_what_is_done_of_several_trainings_is_not_done_again(
    smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before its last training, a stage ends with the bytes of one that was not."""
    params = asked(smoke, "causal_ode")
    init.run(params, work, 0)
    undisturbed = load_file(work / WEIGHTS)
    shutil.rmtree(work / MADE / "init")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(causal_ode, "regress", interrupted)
        with pytest.raises(KeyboardInterrupt):
            init.run(params, work, 0)
    (work / MADE / "init.partial" / causal_ode.PAIRS / "00001.safetensors").unlink()
    monkeypatch.setattr(teacher_forcing, "_train", interrupted)
    init.run(params, work, 0)
    assert all(torch.equal(undisturbed[name], value) for name, value in load_file(work / WEIGHTS).items())


def test_causal_trajectories_that_are_not_finite_are_told(smoke: Path, work: Path) -> None:
    params = asked(smoke, "causal_ode")
    pairs = params.init.pairs.model_copy(update={"guidance": 1e30})  # type: ignore[union-attr]
    spoiled = params.model_copy(update={"init": params.init.model_copy(update={"pairs": pairs})})
    with pytest.raises(UserError, match=r"init\.pairs: trajectory 0: its state after 1 .* lower init\.pairs\.guidance"):
        init.run(spoiled, work, 0)


@pytest.mark.parametrize(
    ("kind", "changes", "line"),
    [
        ("ode", {"kind": "od"}, "init.kind = 'od': there is no such kind; known: adopted, ode, teacher_forcing"),
        ("ode", {"training": None}, "init.training = None: give one; somebody else's student is kind: adopted"),
        ("consistency", {"solver_steps": 6}, "init.solver_steps = 6: must be a multiple of schedule.student_steps = 4"),
        (
            "causal_ode",
            {"pairs": PAIRS | {"solver_steps": 6}},
            "init.pairs.solver_steps = 6: must be a multiple of schedule.student_steps = 4",
        ),
        (
            "consistency",
            {"training": TRAINING | {"optimizer": OPTIMIZER | {"ema": None}}},
            "init.training.optimizer.ema = None: its target is the student's average; give a decay",
        ),
        (
            "consistency",
            {"training": TRAINING | {"optimizer": OPTIMIZER | {"ema_from": 3}}},
            "init.training.optimizer.ema_from = 3: its target is the student's average from the first update on",
        ),
        (
            "consistency",
            {"teacher": {"training": None, "sigma_floor": 0.5}},
            "init.teacher.source = None: give training, or a source to adopt and training: null",
        ),
        (
            "consistency",
            {"teacher": {"training": None, "sigma_floor": 0.5, "source": "models/ar.pt"}},
            "init.teacher.source = 'models/ar.pt': the world trains its own",
        ),
        ("consistency", {"sigma_floor": 0.5}, "init.sigma_floor = 0.5: unknown parameter"),
    ],
)
def test_inits_that_cannot_be_are_told_by_field(kind: str, changes: dict[str, Any], line: str) -> None:
    tree = read_yaml(Path(__file__).parents[2] / "params.yaml")
    own = tree["init"] if kind == "ode" else {"kind": kind} | KINDS[kind]
    with pytest.raises(UserError) as error:
        parse_params(tree | {"init": own | changes}, Path("params.yaml"))
    assert str(error.value).startswith(f"params.yaml: {line}")


def test_processes_take_equal_shares_of_every_training() -> None:
    tree = read_yaml(Path(__file__).parents[2] / "params.yaml")
    training = TRAINING | {"batch": 6}
    own = {"kind": "consistency"} | KINDS["consistency"] | {"teacher": TEACHER | {"training": training}}
    with pytest.raises(UserError, match=r"runtime\.processes = 4: .* the batch of init\.teacher\.training: 6"):
        parse_params(merge(tree, {"init": own, "runtime": {"processes": 4}}), Path("params.yaml"))
