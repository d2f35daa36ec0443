"""What a walk is said to take is what it takes, and what does not fit is refused before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import hiar
from students import save_student

from hiar.config import Context, Order
from hiar.errors import UserError
from hiar.grid import walk_passes
from hiar.models.generator import Walk, load_generator
from hiar.rollout.cell import Memory, carry_out
from hiar.stages.computing import Choice
from hiar.stages.plan import load_asked, plan_line, ring_bytes
from hiar.stages.request import Request
from hiar.stages.rollouts import make_rollout


@torch.no_grad()
@pytest.mark.parametrize(
    ("order", "context"), [("step_first", "output"), ("block_first", "clean"), ("block_first", "shared")]
)
def test_caches_take_what_was_predicted(tmp_path: Path, order: Order, context: Context) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    walk = Walk(order=order, context=context)
    text = source.embed(["a red disc moves left", "a blue disc moves up"])
    rollout = make_rollout(source, text, walk, 24, 0, range(2))
    memory = Memory(source.denoiser, rollout)
    for step in walk_passes(rollout.grid, order):
        carry_out(memory, step)
    held = sum(t.untyped_storage().nbytes() for cache in memory.rings._rings for ring in cache.values() for t in ring)
    assert held == ring_bytes(source, rollout.grid, 2)


def test_a_window_that_does_not_fit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    save_student(tmp_path / "student", video={"window": 999_999_999})
    request = ("--checkpoint", "student", "--prompt", "a red disc moves left", "--out", "out")
    for command in (("sample", *request, "--frames", 9), ("stream", *request)):
        said = hiar(*command, folder=tmp_path, code=2).stderr
        assert said.startswith("error: video.window = 999999999: the caches of 999999999 frames take ")
        assert " GB are free; " in said
        assert said.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_the_line_tells_how_many_forward_calls_there_are(tmp_path: Path) -> None:
    save_student(tmp_path / "student")
    source = load_generator(tmp_path / "student")
    walk = Walk(order="step_first", context="output")
    rollout = make_rollout(source, source.embed(["a red disc moves left"]), walk, 30, 0, [0])
    assert "batched passes (13 forward calls for 10 blocks in 4 steps)" in plan_line(source, walk, rollout, Choice())
    said = plan_line(source, walk, rollout, Choice(), 2)
    assert "batched passes (11 forward calls in each of 2 process(es) for 10 blocks in 4 steps)" in said


def test_the_built_in_world_has_one_size(tmp_path: Path) -> None:
    save_student(tmp_path / "student")
    request = Request(tmp_path / "student", ["a red disc moves left"], 12, size=(32, 48))
    with pytest.raises(UserError, match=r"--size = 48x32: the built-in video world has one size, 64x64; leave"):
        load_asked(request, torch.device("cpu"))
