"""The text of a plan: the first change of settings that fits, and figures that add up."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from commands import ROOT
from typer.testing import CliRunner

import hiar.memory.forecast
from hiar.cli.app import app
from hiar.config import Variant
from hiar.config.inits import Adopted
from hiar.memory import table
from hiar.memory.forecast import USABLE, Entry, Forecast, forecast
from hiar.memory.networks import Models, open_models
from hiar.memory.steps import Peaks, Sizes
from hiar.memory.table import MANY, advice, lines
from hiar.models.generator import Generator
from hiar.parameters import merge, parse_params, read_yaml
from hiar.stages.distill import Prompts
from hiar.worlds.interface import FIRST_CLIP

SMALL = {"video": {"frames": 6, "window": 6}, "schedule": {"student_steps": 2}, "model": {"patch": 4, "layers": 2}}
CHECKPOINTING = {"runtime": {"checkpointing": True}}
OFFLOADED = {"runtime": {"offload": ["optimizers"]}}
GB = 1e9


def models_of(*overrides: dict[str, object]) -> Models:
    tree = read_yaml(ROOT / "params.yaml")
    for one in (SMALL, *overrides):
        tree = merge(tree, one)
    return open_models(parse_params(tree, Path("small")))


@pytest.fixture(autouse=True)
def steps_by_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample takes 100 MB of activations, or 50 MB with checkpointing; to simulate a step takes a second."""

    def imagine(_: object, sizes: Sizes, *__: object) -> Peaks:
        each = 5 * 10**7 if sizes.params.runtime.checkpointing else 10**8
        return {"a step": sizes.batch * each, "walk": sizes.batch * each}

    monkeypatch.setattr("hiar.memory.forecast.imagine", imagine)


def planned(saving: bool, stage: str, batch: int, gpus: int, offloaded: bool = False) -> Forecast:
    models = models_of(*[CHECKPOINTING] * saving, *[OFFLOADED] * offloaded)
    return forecast(models, stage, models.sizes.params.variant("self-forcing"), batch, gpus)


def total(saving: bool, stage: str, batch: int, gpus: int = 1, offloaded: bool = False) -> int:
    return planned(saving, stage, batch, gpus, offloaded).total


def advised(enough_for: int, saving: bool, stage: str, batch: int, gpus: int = 1, offloaded: bool = False) -> str:
    """The advice for GPUs with just enough memory for this many bytes."""
    models = models_of(*[CHECKPOINTING] * saving, *[OFFLOADED] * offloaded)
    variant = models.sizes.params.variant("self-forcing")
    return advice(
        models, planned(saving, stage, batch, gpus, offloaded), variant, batch, gpus, (enough_for + 1) / USABLE
    )


def test_the_first_change_that_makes_a_training_fit_is_advised() -> None:
    """Each includes those before it: checkpointing, fewer samples at a time, host memory, more GPUs."""
    done = "runtime.checkpointing: true, 1 sample at a time"
    ways = {
        total(False, "init", 2): "fits",
        total(True, "init", 2): "does not fit; with runtime.checkpointing: true it does",
        total(True, "init", 1): f"does not fit; with {done} it does",
        total(True, "init", 1, offloaded=True): f"does not fit; with {done}, runtime.offload: [optimizers] it does",
        total(True, "init", 1, 8, True): f"does not fit; with {done}, runtime.offload: [optimizers], 8 GPUs it does",
    }
    assert sorted(ways, reverse=True) == [*ways]
    assert {enough: advised(enough, False, "init", 2) for enough in ways} == ways


def test_a_sample_that_fits_step_by_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the grid can be walked so: not if a block is shown only when it is finished."""
    whole, one = Forecast("sample", (Entry("all", "rings", 40),)), Forecast("sample", (Entry("all", "rings", 10),))
    monkeypatch.setattr(table, "sampling", lambda models, variant, batch, step_by_step: one)
    models = models_of()

    def advice_for(name: str, enough_for: int) -> str:
        return advice(models, whole, models.sizes.params.variant(name), 1, 1, (enough_for + 0.1) / USABLE)

    assert advice_for("hiar", 40) == advice_for("self-forcing", 40) == "fits"
    told = "does not fit; with a walk step by step (the stage's own choice then) it does"
    assert advice_for("hiar", 39) == advice_for("hiar", 10) == told
    none = "does not fit, even with every option: use GPUs with more memory, or a shorter clip or window"
    assert advice_for("hiar", 9) == advice_for("self-forcing", 39) == none


def test_options_already_in_use_are_not_advised() -> None:
    most = total(True, "init", 1, MANY, offloaded=True)
    half = MANY // 2
    assert advised(most, False, "init", 1, half, offloaded=True) == (
        f"does not fit; with runtime.checkpointing: true, {MANY} GPUs it does"
    )
    assert advised(most, True, "init", 1, half, offloaded=True) == f"does not fit; with {MANY} GPUs it does"
    none = "does not fit, even with every option: use GPUs with more memory, or a shorter clip or window"
    assert advised(most - 2, True, "init", 1, MANY, offloaded=True) == none
    alone = total(False, "pairs", 1)  # whose networks are not sharded
    assert advised(alone, False, "pairs", 2) == "does not fit; with 1 sample at a time it does"
    assert advised(alone - 2, False, "pairs", 1) == none


def test_advice_imagines_a_step_once_for_every_number_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes many seconds to imagine, and neither more GPUs nor offloading changes it."""
    asked: list[tuple[bool, int]] = []
    simulated = hiar.memory.forecast.imagine

    def imagine(run: object, sizes: Sizes, *networks: object) -> Peaks:
        asked.append((sizes.params.runtime.checkpointing, sizes.batch))
        return cast(Peaks, simulated(run, sizes, *networks))  # type: ignore[arg-type]

    monkeypatch.setattr("hiar.memory.forecast.imagine", imagine)
    assert "every option" in advised(0, False, "init", 2)
    assert asked == [(False, 2), (True, 2), (True, 1)]


def test_offloading_real_score_and_optimizers_is_advised_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of them is offloaded already, and in any order."""

    def made(models: Models, stage: str, variant: Variant, batch: int, gpus: int, _: object = None) -> Forecast:
        offloaded = {"real_score": 30, "optimizers": 20}
        total = 100 - sum(offloaded[one] for one in models.sizes.params.runtime.offload)
        return Forecast(stage, (Entry("all", "parameters", total),))

    monkeypatch.setattr(table, "forecast", made)

    def advice_for(enough_for: int, *offload: str) -> str:
        models = models_of(CHECKPOINTING, {"runtime": {"processes": 1, "offload": [*offload]}})
        variant = models.sizes.params.variant("self-forcing")
        return advice(models, made(models, "distill", variant, 1, MANY), variant, 1, MANY, (enough_for + 1) / USABLE)

    way = "does not fit; with runtime.offload: [real_score, optimizers] it does"
    assert advice_for(50) == advice_for(50, "optimizers") == advice_for(50, "real_score") == way
    for both in (["real_score", "optimizers"], ["optimizers", "real_score"]):
        assert advice_for(50, *both) == "fits"
        assert advice_for(48, *both).startswith("does not fit, even with every option")


def test_host_entries_are_listed_but_not_added_to_the_total() -> None:
    printed = list(lines(models_of(OFFLOADED), ("init",), 1, 1, 80 * GB))
    (host,) = [line for line in printed if line.endswith("  on the host")]
    states = planned(False, "init", 1, 1, True).host
    assert [(e.role, e.what, f"{e.bytes / GB:.2f}") for e in states] == [tuple(host.split()[:3])]
    (whole,) = [line for line in printed if line.startswith("  all") and line.endswith("  fits")]
    assert float(whole.split()[1]) == pytest.approx(planned(False, "init", 1, 1, True).total / GB, abs=0.005)


def test_a_plan_says_how_often_prompts_are_embedded() -> None:
    """As often as in a training on all of its samples, including the warm-up steps of the critic."""
    recipe = read_yaml(ROOT / "experiments" / "wan2.1-1.3b.yaml")
    recipe = merge(recipe, {"runtime": {"processes": None}})
    for steps, warmup, batch, replay in ((4096, 1, 1, 1), (1024, 0, 8, None)):
        spec = {"steps": steps, "critic_warmup": warmup, "batch": batch, "micro_batch": None, "replay": replay}
        params = parse_params(merge(merge(read_yaml(ROOT / "params.yaml"), recipe), {"distill": spec}), Path("recipe"))
        loads: list[int] = []
        world = SimpleNamespace(base=Path("base"), prompts=lambda seed, first, count: [first] * count)
        teacher = SimpleNamespace(world=world, prepare=loads.append, embed=lambda texts: texts)
        prompts = Prompts(cast(Generator, teacher), 0, params.distill)
        counts = {"distill": params.distill.all_steps * params.distill.batch, "critic": params.distill.critic_rollouts}
        for purpose, count in counts.items():
            for number in range(0, count, 64):
                prompts(range(FIRST_CLIP[purpose] + number, FIRST_CLIP[purpose] + min(number + 64, count)))
        models = open_models(params)
        head, line = islice(lines(models, ("distill",), 1, 1, 80 * GB), 2)
        assert head.startswith("Wan2.1, 832x480, clips of 21 latent frames; ")
        assert line.startswith(f"text encoder: {models.text / GB:.2f} GB while new prompts are embedded, ")
        assert line.endswith(f": {len(loads)} times at most")


def test_a_plan_says_what_embeddings_take_also_with_foreign_pairs() -> None:
    """Without prompt file and base model, each sample and pair may have its own prompt of the full length."""
    recipe = merge(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "experiments" / "wan2.1-1.3b.yaml"))
    recipe = merge(recipe, {"runtime": {"processes": None}})
    recipe = merge(recipe, {"distill": {"steps": 2, "critic_warmup": 1, "batch": 2, "critic_batch": 4}})
    for source, count in ((None, 10), ("models/pairs", 10), ("models/pairs", 7)):
        pairs = {"pairs": {"source": source, "count": count}}
        models = open_models(parse_params(merge(recipe, pairs), Path("recipe")))
        *_, line = islice(lines(models, (), 1, 1, 80 * GB), 3)
        prompts = (1 + 2) * 2 + (1 + 2) * 5 * 4 + count
        assert line.startswith(f"their embeddings: up to {prompts * 512 * 4096 * 2 / GB:.2f} GB of {prompts} prompts")


def test_a_plan_adds_up() -> None:
    printed = list(lines(models_of(), ("init", "pairs"), 2, 3, 80 * GB))
    assert "2 sample(s) a GPU at a time; 3 GPUs of 80 GB, of which 90% may be filled" in printed[0]
    parts: list[list[float]] = []
    for line in printed:
        if figures := re.fullmatch(r"  (\S.{30})(.{9})(  fits)?", line):
            name, size = figures[1].strip(), float(figures[2])
            if name != "all":
                parts[-1].append(size)
            else:
                assert size == pytest.approx(sum(parts[-1]), abs=0.005 * (len(parts[-1]) + 1))
        elif line and not line.startswith(" "):
            parts.append([])
    assert [len(rows) > 1 for rows in parts[-3:]] == [True, True, True]  # two stages and the disk


def test_a_plan_names_the_method_and_the_seeds() -> None:
    """The method that takes the most memory; each seed takes as much disk."""
    printed = "\n".join(lines(models_of({"seeds": [3, 4]}), ("init", "distill"), 1, 1, 80 * GB))
    assert "\ninit, GB a GPU\n" in printed
    assert "\ndistill hiar, GB a GPU\n" in printed
    assert "\ndisk, GB, of each of 2 seed(s), in the order of the stages\n" in printed


def test_an_init_that_is_adopted_is_not_planned() -> None:
    models = models_of()
    params = models.sizes.params.model_copy(update={"init": Adopted.model_construct(kind="adopted")})
    models = replace(models, sizes=replace(models.sizes, params=params))
    printed = "\n".join(lines(models, ("init", "pairs"), 1, 1, 80 * GB))
    assert "\ninit, GB a GPU" not in printed
    assert "\npairs, GB a GPU" in printed


def test_hiar_plan_follows_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def output_of(*options: str) -> str:
        return CliRunner().invoke(app, ["plan", "--stage", "pairs", *options]).output

    printed = output_of("--gpus", "3", "--memory", "0.5", "--micro-batch", "5")
    assert "\npairs, GB a GPU" in printed
    assert "\nsample" not in printed
    assert "5 sample(s) a GPU at a time; 3 GPUs of 0.5 GB, of which" in printed
    assert "1 sample(s) a GPU at a time; 1 GPU of 80 GB, of which" in output_of()
