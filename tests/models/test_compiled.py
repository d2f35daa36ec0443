"""Compiled layers compute the same as plain ones, from few graphs, and leave no trace afterwards."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from students import save_student
from torch._dynamo.utils import counters

from benchmarks.presets import PRESETS, build
from benchmarks.walks import ALONE, BATCHED
from hiar.config import Context, Order
from hiar.models import compiled as module
from hiar.models.card import Walk
from hiar.models.compiled import Compiled, compiled, where_it_pays
from hiar.models.denoiser import Denoiser
from hiar.models.fp8 import use_fp8
from hiar.models.generator import Generator, load_generator
from hiar.rollout.walk import generate
from hiar.stages.computing import SETTLED, Choice, computing, full_pass, settle, work
from hiar.stages.rollouts import make_rollout
from hiar.stages.sample import sample_latents

PROMPTS = ["a red disc moves left", "a blue disc moves up"]
WALK = Walk(order="step_first", context="output")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, g++")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def source(tmp_path: Path) -> Generator:
    save_student(tmp_path / "student")
    return load_generator(tmp_path / "student")


def _graphs(layers: int) -> int:
    """The number of graphs that all walks compile for a model with this many layers."""
    preset = PRESETS["wan-tiny"]()
    model = preset.model.model_copy(update={"layers": layers})
    setup = build(type(preset)(**{**vars(preset), "model": model, "dtype": torch.float32}), torch.device("cpu"), 2)
    torch._dynamo.reset()
    counters.clear()
    for walk in ALONE:
        rollout = setup.rollout(preset.grid(walk, 5))
        expected = generate(setup.denoiser, rollout, walk.order, passes=walk.passes)
        with compiled(setup.denoiser, backend="eager"):
            out = generate(setup.denoiser, rollout, walk.order, passes=walk.passes)
        assert torch.equal(out, expected)
    return counters["stats"]["unique_graphs"]


@torch.no_grad()
def test_all_layers_and_all_blocks_share_graphs() -> None:
    """A graph per layer, block or cache would soon exceed what torch keeps, and each takes seconds to compile."""
    assert 0 < _graphs(2) == _graphs(9)  # torch keeps eight


@torch.no_grad()
def test_a_third_number_of_blocks_makes_no_more_graphs() -> None:
    """The second makes the graphs dynamic; a walk begins with few blocks a call, and the last batch may be short."""
    preset = PRESETS["wan-tiny"]()
    setup = build(preset, torch.device("cpu"), 2)
    counts = []
    with compiled(setup.denoiser, backend="eager"):
        for rows in (2, 1, 3):
            full_pass(setup.denoiser, setup.rollout(preset.grid(BATCHED, 6)), rows)
            counts.append(counters["stats"]["unique_graphs"])
    assert 0 < counts[0] < counts[1] == counts[2]


@pytest.mark.long
@needs_compiler
@torch.no_grad()
def test_sampling_with_compiled_layers_differs_only_by_rounding(source: Generator) -> None:
    expected = sample_latents(source, PROMPTS, 24, WALK, 0, range(2))
    with computing(source.denoiser, Choice("math", Compiled(1.0, 0.0, 1.0))):
        out = sample_latents(source, PROMPTS, 24, WALK, 0, range(2))
        assert counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)
    assert torch.equal(sample_latents(source, PROMPTS, 24, WALK, 0, range(2)), expected)


def test_compilation_is_chosen_only_where_it_pays_and_is_accurate(
    source: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = make_rollout(source, source.embed(PROMPTS), WALK, None, 0, range(2))
    forward = full_pass(source.denoiser, rollout)
    monkeypatch.setattr(module, "compiled", partial(compiled, backend="eager"))  # which takes less time
    assert where_it_pays(source.denoiser, forward, calls=10) is None
    assert not counters["stats"], "a short walk is not worth compiling"
    monkeypatch.setattr(module, "GAIN", 0.0)
    found = where_it_pays(source.denoiser, forward)
    assert found is not None
    assert found.gain > 0
    assert found.error < 1e-5
    assert found.first_call > 0
    monkeypatch.setattr(module, "ERROR", -1.0)
    assert where_it_pays(source.denoiser, forward) is None
    monkeypatch.setattr(module, "ERROR", 8.0)
    monkeypatch.setattr(module, "GAIN", math.inf)
    assert where_it_pays(source.denoiser, forward) is None


def test_inductor_compiles_each_layer_and_leaves_products_to_libraries(
    source: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch, "compile", lambda forward, **options: asked.append(options) or forward)
    with compiled(source.denoiser):
        pass
    layers = source.denoiser.transformer.config.num_layers
    assert asked == [{"backend": "inductor", "options": {"max_autotune_gemm_backends": "ATEN"}}] * layers


def test_the_gain_is_how_much_faster_compiled_layers_are(source: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "compiled", partial(compiled, backend="eager"))
    found = iter([(torch.tensor([3.0, 4.0]), 2.0), (torch.tensor([3.0, 4.5]), 0.5)])  # eager layers come first
    monkeypatch.setattr(module, "timed", lambda *_: next(found))
    made = module.measure_compiled(source.denoiser, lambda: torch.zeros(1))
    assert (made.gain, made.error) == (4.0, pytest.approx(0.1))


def test_compiled_fp8_layers_may_differ_by_fp8s_error(source: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise mere rounding in another order would have them refused."""
    monkeypatch.setattr(module, "compiled", partial(compiled, backend="eager"))
    monkeypatch.setattr(module, "GAIN", 0.0)
    monkeypatch.setattr(module, "ERROR", -1.0)  # refuses even equal results
    forward = full_pass(source.denoiser, make_rollout(source, source.embed(PROMPTS), WALK, None, 0, range(2)))
    assert where_it_pays(source.denoiser, forward) is None
    use_fp8(source.denoiser)
    assert where_it_pays(source.denoiser, forward) is not None


def test_layers_that_cannot_be_compiled_stay_as_they_are(source: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(denoiser: Denoiser) -> object:
        return compiled(denoiser, backend="no such backend")

    monkeypatch.setattr(module, "compiled", fails)
    rollout = make_rollout(source, source.embed(PROMPTS), WALK, None, 0, range(2))
    forward = full_pass(source.denoiser, rollout)
    expected = forward()
    assert where_it_pays(source.denoiser, forward) is None
    assert torch.equal(forward(), expected)


@pytest.mark.parametrize(
    ("order", "context", "rows", "calls"),
    [
        ("step_first", "output", 8, 20 + 4 - 1),
        ("block_first", "finished", 1, 20 * 4),
        ("block_first", "shared", 2, 38 + 4),
    ],
)
def test_work_is_counted_in_calls_of_the_usual_size(
    source: Generator, order: Order, context: Context, rows: int, calls: int
) -> None:
    walk = Walk(order=order, context=context)
    rollout = make_rollout(source, source.embed(PROMPTS), walk, 60, 0, range(2))
    assert work(walk, rollout) == (rows, calls)
    assert full_pass(source.denoiser, rollout, rows)().shape == (2, rows, *source.block_shape)
    assert work(walk, make_rollout(source, source.embed(PROMPTS), walk, None, 0, range(2))) == (rows, math.inf)


def test_a_resumed_run_keeps_its_first_choice(source: Generator, tmp_path: Path) -> None:
    rollout = make_rollout(source, source.embed(PROMPTS), WALK, 24, 0, range(2))
    assert settle(tmp_path, source, WALK, rollout, 1) == Choice(None, None)
    assert settle(tmp_path, source, WALK, rollout, 1) == Choice(None, None)
    (tmp_path / SETTLED).write_text('["math", [1.25, 0.001, 31.5]]')
    choice = settle(tmp_path, source, WALK, rollout, 1)
    assert choice == Choice("math", Compiled(1.25, 0.001, 31.5))
    assert str(choice) == "math attention, compiled layers (1.25 times as fast, 32 s to compile)"
