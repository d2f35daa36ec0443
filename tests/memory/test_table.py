"""What a plan says: the first way that fits, of all that are offered, and figures that add up."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from commands import ROOT
from typer.testing import CliRunner

from hiar.cli.app import app
from hiar.config import Variant
from hiar.config.inits import Adopted
from hiar.memory import table
from hiar.memory.forecast import USABLE, Forecast, Models, forecast, open_models
from hiar.memory.table import MANY, advice, lines
from hiar.parameters import merge, parse_params, read_yaml

# Quick to imagine: a plan is arithmetic on the same steps whatever their size.
SMALL = {"video": {"frames": 6, "window": 6}, "schedule": {"student_steps": 2}, "model": {"patch": 4, "layers": 2}}
CHECKPOINTING = {"runtime": {"checkpointing": True}}
AWAY = {"runtime": {"offload": ["optimizers"]}}
GB = 1e9


def models_of(*overrides: dict[str, object]) -> Models:
    tree = read_yaml(ROOT / "params.yaml")
    for one in (SMALL, *overrides):
        tree = merge(tree, one)
    return open_models(parse_params(tree, Path("small")))


@lru_cache
def planned(saving: bool, stage: str, batch: int, gpus: int, away: bool = False) -> Forecast:
    models = models_of(*[CHECKPOINTING] * saving, *[AWAY] * away)
    return forecast(models, stage, models.sizes.params.variant("self-forcing"), batch, gpus)


def total(saving: bool, stage: str, batch: int, gpus: int = 1, away: bool = False) -> int:
    return planned(saving, stage, batch, gpus, away).total


def advised(enough_for: int, saving: bool, stage: str, batch: int, gpus: int = 1, away: bool = False) -> str:
    """What is said where a GPU has just the memory for so many bytes."""
    models = models_of(*[CHECKPOINTING] * saving, *[AWAY] * away)
    variant = models.sizes.params.variant("self-forcing")
    return advice(models, planned(saving, stage, batch, gpus, away), variant, batch, gpus, (enough_for + 1) / USABLE)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forecast takes a second, and several ways of several cases are the same one."""

    def known(models: Models, stage: str, variant: Variant, batch: int, gpus: int) -> Forecast:
        assert variant == models.sizes.params.variant("self-forcing")
        runtime = models.sizes.params.runtime
        assert runtime.offload in ([], ["optimizers"])
        return planned(runtime.checkpointing, stage, batch, gpus, bool(runtime.offload))

    monkeypatch.setattr(table, "forecast", known)


@pytest.mark.usefixtures("once")
def test_of_the_ways_that_make_a_training_fit_the_first_is_told() -> None:
    """Each with those before it: activations computed anew, fewer samples at a time, the host's memory, more GPUs."""
    done = "runtime.checkpointing: true, 1 sample at a time"
    ways = {
        total(False, "init", 2): "fits",
        total(True, "init", 2): "does not fit; with runtime.checkpointing: true it does",
        total(True, "init", 1): f"does not fit; with {done} it does",
        total(True, "init", 1, away=True): f"does not fit; with {done}, runtime.offload: [optimizers] it does",
        total(True, "init", 1, 8, True): f"does not fit; with {done}, runtime.offload: [optimizers], 8 GPUs it does",
    }
    assert sorted(ways, reverse=True) == [*ways]
    assert {enough: advised(enough, False, "init", 2) for enough in ways} == ways


@pytest.mark.usefixtures("once")
def test_only_what_is_not_done_already_is_advised() -> None:
    most = total(True, "init", 1, MANY, away=True)
    half = MANY // 2
    assert advised(most, False, "init", 1, half, away=True) == (
        f"does not fit; with runtime.checkpointing: true, {MANY} GPUs it does"
    )
    assert advised(most, True, "init", 1, half, away=True) == f"does not fit; with {MANY} GPUs it does"
    none = "does not fit, nor does less of it: GPUs of more memory, or a shorter clip or window"
    assert advised(most - 2, True, "init", 1, MANY, away=True) == none
    alone = total(False, "pairs", 1)  # whose networks are not shared out
    assert advised(alone, False, "pairs", 2) == "does not fit; with 1 sample at a time it does"
    assert advised(alone - 2, False, "pairs", 1) == none


def test_a_plan_adds_up() -> None:
    said = list(lines(models_of(), ("init", "pairs"), 2, 3, 80 * GB))
    assert "2 sample(s) a GPU at a time; 3 GPUs of 80 GB, of which 90% may be filled" in said[0]
    parts: list[list[float]] = []
    for line in said:
        if figures := re.fullmatch(r"  (\S.{30})(.{9})(  fits)?", line):
            name, size = figures[1].strip(), float(figures[2])
            if name != "all":
                parts[-1].append(size)
            else:
                assert size == pytest.approx(sum(parts[-1]), abs=0.005 * (len(parts[-1]) + 1))
        elif line and not line.startswith(" "):
            parts.append([])
    assert [len(rows) > 1 for rows in parts[-3:]] == [True, True, True]  # two stages and the disk


def test_an_init_that_is_adopted_is_not_planned() -> None:
    models = models_of()
    params = models.sizes.params.model_copy(update={"init": Adopted.model_construct(kind="adopted")})
    models = replace(models, sizes=replace(models.sizes, params=params))
    said = "\n".join(lines(models, ("init", "pairs"), 1, 1, 80 * GB))
    assert "\ninit, GB a GPU" not in said
    assert "\npairs, GB a GPU" in said


def test_what_the_command_is_asked_for_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def said(*options: str) -> str:
        return CliRunner().invoke(app, ["plan", "--stage", "pairs", *options]).output

    asked = said("--gpus", "3", "--memory", "0.5", "--micro-batch", "5")
    assert "\npairs, GB a GPU" in asked
    assert "\nsample" not in asked
    assert "5 sample(s) a GPU at a time; 3 GPUs of 0.5 GB, of which" in asked
    assert "1 sample(s) a GPU at a time; 1 GPU of 80 GB, of which" in said()
