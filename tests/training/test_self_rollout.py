"""Self-rollout distillation: who learns from what."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny import tiny_denoiser

from hiar.config import AdamW, Distill, ForwardKL, Optimizer, Schedule, Variant, Video
from hiar.grid import Cell, make_grid, walk_passes
from hiar.rollout.cell import Memory, Rollout, carry_out
from hiar.rollout.walk import generate
from hiar.schedule import step_sigmas
from hiar.training.role import make_role
from hiar.training.self_rollout import Distillation, critic_step, self_rollout, student_step

OPTIMIZER = Optimizer(
    adamw=AdamW(lr=1e-3, betas=(0.0, 0.999), weight_decay=0.0),
    muon=None,
    warmup=0,
    decay="constant",
    clip=1.0,
    ema=0.9,
    ema_from=0,
)
SHAPE = (3, 2, 4, 4)
TEXT = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def make_job(variant: Variant, precision: Literal["no", "bf16"] = "no") -> Distillation:
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate allows one precision a process otherwise
    settings = Distill(
        steps=4,
        batch=2,
        windows=2,
        guidance=1.5,
        critic_updates=1,
        critic_warmup=0,
        critic_batch=4,
        replay=2,
        generator=OPTIMIZER,
        critic=OPTIMIZER,
    )
    return Distillation(
        student=make_role(tiny_denoiser(seed=1), OPTIMIZER, 4),
        critic=make_role(tiny_denoiser(seed=2), OPTIMIZER, 4),
        teacher=tiny_denoiser(seed=3),
        no_text=torch.zeros(1, 5, 8),
        block_shape=SHAPE,
        settings=settings,
        variant=variant,
        video=Video(frames=4, block=2, window=4, sink_blocks=0),
        schedule=Schedule(teacher_shift=4.0, student_shift=2.0, student_steps=3, renoise="sde"),
        sigma_floor=0.2,
        accelerator=Accelerator(cpu=True, mixed_precision=precision),
    )


HIAR = Variant(order="step_first", context="output", forward_kl=None)
SELF_FORCING = Variant(order="block_first", context="clean", forward_kl=None)
REGULARISED = HIAR.model_copy(update={"forward_kl": ForwardKL(weight=1.0, steps=1, attention="bidirectional")})


def weights(job: Distillation, role: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in getattr(job, role).module.parameters()])


@pytest.mark.parametrize("variant", [HIAR, SELF_FORCING])
@pytest.mark.parametrize("exit_step", [0, 2])
def test_windows_are_the_rollout_cut_in_time(variant: Variant, exit_step: int) -> None:
    job = make_job(variant)
    windows = self_rollout(job, TEXT, 7, range(2), exit_step, learn=True)
    assert windows.shape == (4, 3, 4, 4, 4)
    assert windows.requires_grad
    grid = make_grid(variant.order, variant.context, blocks=4, steps=exit_step + 1, window=2)
    rollout = Rollout(grid, step_sigmas(3, 2.0), SHAPE, "sde", 7, range(2), TEXT)
    with torch.no_grad():
        video = generate(job.student.module, rollout, variant.order)  # type: ignore[arg-type]
    assert torch.equal(windows[0], video[0, :, :4])
    assert torch.equal(windows[3], video[1, :, 4:])


@pytest.mark.parametrize("exit_step", [0, 1])
def test_shared_context_is_at_the_exit_what_it_is_in_a_whole_rollout(exit_step: int) -> None:
    """Cutting the steps behind the exit would take its context away: it is left by the next step."""
    job = make_job(Variant(order="block_first", context="shared", forward_kl=None))
    windows = self_rollout(job, TEXT, 7, range(2), exit_step, learn=True)
    grid = make_grid("block_first", "shared", blocks=4, steps=3, window=2)
    rollout = Rollout(grid, step_sigmas(3, 2.0), SHAPE, "sde", 7, range(2), TEXT)
    memory = Memory(job.student.module, rollout)  # type: ignore[arg-type]
    seen = {}
    with torch.no_grad():
        for step in walk_passes(grid, "block_first"):
            carry_out(memory, step)
            seen |= {cell: memory.states[cell.block].x0 for cell in step.denoise}
    expected = torch.cat([seen[Cell(block, exit_step)] for block in range(4)], dim=2)
    assert torch.equal(torch.cat([windows[0], windows[1]], dim=1), expected[0])
    assert windows.requires_grad


def test_the_student_learns_from_frozen_scores_and_the_critic_from_the_students_videos() -> None:
    job = make_job(HIAR)
    before = {role: weights(job, role) for role in ("student", "critic")}
    windows = self_rollout(job, TEXT, 7, range(2), 1, learn=True)
    text = TEXT.repeat_interleave(2, dim=0)
    student_step(job, windows, text, None, torch.Generator().manual_seed(0), 0)
    assert not torch.equal(weights(job, "student"), before["student"])
    assert torch.equal(weights(job, "critic"), before["critic"])
    assert all(p.grad is None for p in job.teacher.parameters())
    after = weights(job, "student")
    critic_step(job, windows.detach(), text, torch.Generator().manual_seed(0), 0)
    assert torch.equal(weights(job, "student"), after)
    assert not torch.equal(weights(job, "critic"), before["critic"])


def test_the_regulariser_is_there_when_the_variant_asks_for_it() -> None:
    results = {}
    pairs = (torch.randn(2, 4, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1)), step_sigmas(3, 2.0), TEXT)
    for name, variant in (("with", REGULARISED), ("without", HIAR)):
        job = make_job(variant)
        windows = self_rollout(job, TEXT, 7, range(2), 1, learn=True)
        text = TEXT.repeat_interleave(2, dim=0)
        metrics = student_step(job, windows, text, pairs, torch.Generator().manual_seed(0), 0)
        assert ("forward_kl" in metrics) == (name == "with")
        results[name] = weights(job, "student")
    assert not torch.equal(results["with"], results["without"])


def test_half_precision_keeps_levels_and_latents_in_full() -> None:
    full = self_rollout(make_job(REGULARISED), TEXT, 7, range(2), 1, learn=True)
    job = make_job(REGULARISED, "bf16")
    windows = self_rollout(job, TEXT, 7, range(2), 1, learn=True)
    assert windows.dtype == torch.float32
    assert not torch.equal(windows, full)
    windows.square().sum().backward()
    student = job.student.module
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
    assert (windows - full).abs().mean() < 0.1 * full.abs().mean()
    critic_step(job, windows.detach(), TEXT.repeat_interleave(2, dim=0), torch.Generator().manual_seed(0), 0)
    assert weights(job, "critic").dtype == torch.float32
    AcceleratorState._reset_state(reset_partial_state=True)
