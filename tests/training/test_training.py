"""Training: groups, schedule, averages, exact resume, and the stop at a broken loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_denoiser

from hiar.config import AdamW, Muon, Optimizer
from hiar.errors import UserError
from hiar.models.attention import Bidirectional
from hiar.training.checkpoint import STATE, load_state, save_state
from hiar.training.loop import train
from hiar.training.role import Role, kept, lr_factor, make_role, update

SETTINGS = Optimizer(
    adamw=AdamW(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0),
    muon=Muon(lr=0.01, weight_decay=0.01),
    warmup=2,
    decay="cosine",
    clip=1.0,
    ema=0.9,
    ema_from=0,
)


class Silent:
    def log(self, step: int, metrics: object) -> None: ...


def make_step(role: Role, memory: dict[str, torch.Tensor]):  # type: ignore[no-untyped-def]
    accelerator = Accelerator(cpu=True)

    def step(number: int) -> dict[str, float]:
        random = torch.Generator().manual_seed(number)
        x, text = torch.randn(2, 3, 4, 4, 4, generator=random), torch.randn(2, 5, 8, generator=random)
        out = role.module(x, torch.tensor([0.3, 0.8]), text, Bidirectional())
        loss = (out - memory.get("last", x)).square().mean()
        memory["last"] = out.detach()
        accelerator.backward(loss)
        return {"loss": loss.item(), "norm": update(role, number, accelerator)}

    return step


def run(folder: Path, steps: int, stop: int | None = None) -> tuple[Role, list[dict[str, float]]]:
    """Train to the end, or save and drop everything after ``stop`` steps, as a kill right after a checkpoint does."""
    role, memory = make_role(tiny_denoiser(), SETTINGS, steps), {}
    step = make_step(role, memory)
    if stop is not None:
        curve = [{"step": number, **step(number)} for number in range(stop)]
        save_state(folder, stop, {"role": role}, memory, curve)
        return role, curve
    curve = train("test", steps, step, {"role": role}, folder, Silent(), checkpoint_minutes=60, memory=memory)
    return role, curve


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole, whole_curve = run(tmp_path / "whole", 6)
    run(tmp_path / "killed", 6, stop=stop)
    resumed, resumed_curve = run(tmp_path / "killed", 6)
    assert whole_curve == resumed_curve
    for kind in (lambda role: role.module, kept):
        expected, actual = kind(whole).state_dict(), kind(resumed).state_dict()
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[key], actual[key]) for key in expected)


def test_a_state_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    role, _ = run(tmp_path, 6, stop=2)
    run(tmp_path, 6, stop=3)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]
    assert load_state(tmp_path, {"role": role}, {})[0] == 3


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    role, _ = run(tmp_path, 6, stop=2)
    path = tmp_path / STATE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"state\.safetensors: is truncated .*; delete it"):
        load_state(tmp_path, {"role": role}, {})


def test_training_checkpoints_as_it_goes(tmp_path: Path) -> None:
    role, memory = make_role(tiny_denoiser(), SETTINGS, 4), {}
    step = make_step(role, memory)
    train("test", 4, step, {"role": role}, tmp_path, Silent(), checkpoint_minutes=1e-9, memory=memory)
    assert load_state(tmp_path, {"role": role}, {})[0] == 3  # none after the last step: the artifact follows


def test_a_loss_that_is_not_finite_stops_with_the_last_state_kept(tmp_path: Path) -> None:
    role, memory = make_role(tiny_denoiser(), SETTINGS, 6), {}
    good = make_step(role, memory)

    def step(number: int) -> dict[str, float]:
        return {"loss": math.inf} if number == 3 else good(number)

    with pytest.raises(UserError, match=r"loss = inf at step 3; lower the learning rate"):
        train("test", 6, step, {"role": role}, tmp_path, Silent(), checkpoint_minutes=1e-9, memory=memory)
    assert load_state(tmp_path, {"role": role}, {})[0] == 3


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = tiny_denoiser()
    role = make_role(model, SETTINGS, 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adamw, muon = ([names[id(p)] for group in o.param_groups for p in group["params"]] for o in role.optimizers)
    assert all("blocks" in name and name.endswith("weight") for name in muon)
    assert {"transformer.proj_out.weight", "transformer.patch_embedding.weight"} <= set(adamw)
    assert sorted(adamw + muon) == sorted(names.values())
    without = make_role(model, SETTINGS.model_copy(update={"muon": None}), 10)
    assert [type(optimizer) for optimizer in without.optimizers] == [torch.optim.AdamW]


@given(st.integers(0, 20), st.integers(21, 200))
def test_the_learning_rate_warms_up_and_falls_to_nothing(warmup: int, steps: int) -> None:
    settings = SETTINGS.model_copy(update={"warmup": warmup})
    factors = [lr_factor(settings, step, steps) for step in range(steps)]
    assert max(factors) == factors[warmup] == 1
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[0] > 0
    assert lr_factor(settings, steps, steps) == pytest.approx(0)


def test_the_average_starts_from_the_first_weights_and_follows(tmp_path: Path) -> None:
    role = make_role(torch.nn.Linear(2, 1, bias=False), SETTINGS.model_copy(update={"muon": None}), 10)
    weight, average = role.module.weight, kept(role).weight
    seen = []
    for step in range(5):
        weight.grad = torch.ones_like(weight)
        update(role, step, Accelerator(cpu=True))
        seen.append(weight.detach().clone())
    expected = seen[0]
    for count, value in enumerate(seen[1:], start=1):
        expected = expected.lerp(value, 1 - min(0.9, (1 + count) / (10 + count)))
    torch.testing.assert_close(average, expected)


def test_without_a_decay_no_average_is_kept() -> None:
    role = make_role(tiny_denoiser(), SETTINGS.model_copy(update={"ema": None}), 10)
    assert role.average is None
    assert kept(role) is role.module
