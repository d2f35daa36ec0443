"""Self-rollout distillation: whole steps against the same steps written out; what is updated when, and from what."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from tiny import tiny_denoiser
from torch import Tensor
from written_out import Learner, WrittenOut

from hiar.config import AdamW, Conventions, Distill, ForwardKL, Levels, Optimizer, Schedule, Variant, Video
from hiar.errors import UserError
from hiar.io.process_group import Ranks
from hiar.models.attention import BlockCausal
from hiar.noise import normals, stream
from hiar.schedule import step_sigmas
from hiar.training import distillation
from hiar.training.clips import as_clips
from hiar.training.diffusion_forcing import Pairs
from hiar.training.distillation import (
    Distillation,
    check_batches,
    critic_step,
    distillation_step,
    remember,
    student_step,
)
from hiar.training.role import kept, make_role
from hiar.training.self_rollout import SelfRollout
from hiar.worlds.shapes.codec import PatchCodec
from hiar.worlds.wan.codec import WanCodec

SEED, STUDENT, CRITIC = 18, 1000, 2000  # seed, and the first samples of the student and of the critic
SHAPE = (3, 2, 4, 4)
VIDEO = Video(frames=4, block=2, window=4, sink_blocks=0)
SCHEDULE = Schedule(teacher_shift=4.0, student_shift=2.0, student_steps=3, renoise="sde")
NO_TEXT = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(10))
PAIRS = (
    torch.randn(5, 4, 3, 4, 4, 4, generator=torch.Generator().manual_seed(1)),
    step_sigmas(3, 2.0),
    torch.randn(5, 5, 8, generator=torch.Generator().manual_seed(2)),
)
GENERATOR = Optimizer(
    adamw=AdamW(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.1),
    muon=None,
    warmup=1,
    decay="cosine",
    clip=1.0,
    ema=0.15,
    ema_from=0,
)
CRITIC_OPTIMIZER = Optimizer(
    adamw=AdamW(lr=2e-3, betas=(0.3, 0.8), weight_decay=0.3),
    muon=None,
    warmup=3,
    decay="cosine",
    clip=2.0,
    ema=None,
    ema_from=0,
)
SETTINGS = Distill(
    steps=4,
    batch=2,
    windows=2,
    guidance=3.0,
    critic_updates=2,
    real_score=None,
    critic_warmup=0,
    critic_batch=6,
    critic_floor=0.3,
    replay=2,
    levels=Levels(shift=1.5, lowest=0.1, highest=0.8),
    generator=GENERATOR,
    critic=CRITIC_OPTIMIZER,
)
HIAR = Variant(order="step_first", context="output", level=1.0, forward_kl=None)
LOWERED = Variant(order="step_first", context="output", level=(0.8, 0.0), forward_kl=None)
CAUSVID = Variant(order="block_first", context="finished", level=None, forward_kl=None, forcing="diffusion")
SELF_FORCING = Variant(order="block_first", context="finished", level=None, forward_kl=None)
TWO_WAYS = ForwardKL(weight=3.0, steps=2, attention="bidirectional")
CAUSAL = ForwardKL(weight=3.0, steps=1, attention="causal")
PLAIN = Conventions(given="level", sinks="turn", context_noise=0.0)


@pytest.fixture(autouse=True)
def _leave_no_precision() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Prompts:
    """Text embeddings that differ for each sample; calls: the samples of each, in order."""

    def __init__(self) -> None:
        self.calls: list[range] = []

    def __call__(self, samples: range) -> Tensor:
        self.calls.append(samples)
        return normals("measuring", 0, samples, (5, 8))


def with_forward_kl(spec: ForwardKL, variant: Variant = HIAR) -> Variant:
    return variant.model_copy(update={"forward_kl": spec})


def make_job(
    variant: Variant = HIAR,
    precision: Literal["no", "bf16"] = "no",
    conventions: Conventions = PLAIN,
    **changes: Any,
) -> Distillation:
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate otherwise allows one precision per process
    settings = Distill(**(dict(SETTINGS) | changes))
    teacher = tiny_denoiser(seed=3).requires_grad_(False)
    return Distillation(
        student=make_role(tiny_denoiser(seed=1), settings.generator, settings.steps),
        critic=make_role(tiny_denoiser(seed=2), settings.critic, settings.all_steps * settings.critic_updates),
        teacher=teacher,
        roll_out=SelfRollout(SHAPE, settings.windows, variant, VIDEO, SCHEDULE, conventions),
        codec=PatchCodec(patch=1, channels=3, width=4, depth=1),
        settings=settings,
        prompts=Prompts(),
        no_text=NO_TEXT,
        student_samples=STUDENT,
        critic_samples=CRITIC,
        pairs=Pairs(*PAIRS[:2], PAIRS[2].__getitem__),
        seed=SEED,
        accelerator=Accelerator(cpu=True, mixed_precision=precision),
    )


def write_out(job: Distillation) -> WrittenOut:
    """The reference with copies of the job's networks, its settings and its seed; it keeps its own state."""
    settings, roll_out = job.settings, job.roll_out
    return WrittenOut(
        student=Learner(copy.deepcopy(job.student.module), settings.generator, settings.steps),  # type: ignore[arg-type]
        critic=Learner(
            copy.deepcopy(job.critic.module),  # type: ignore[arg-type]
            settings.critic,
            settings.critic_updates * (-(-settings.critic_warmup // settings.critic_updates) + settings.steps),
        ),
        teacher=job.teacher,
        settings=settings,
        variant=roll_out.variant,
        video=VIDEO,
        schedule=SCHEDULE,
        conventions=roll_out.conventions,
        prompts=Prompts(),
        no_text=NO_TEXT,
        student_samples=STUDENT,
        critic_samples=CRITIC,
        pairs=PAIRS,
        seed=SEED,
        shape=SHAPE,
    )


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def weights(job: Distillation, role: str) -> Tensor:
    return flat(getattr(job, role).module.parameters())


CASES: dict[str, dict[str, Any]] = {
    "HiAR": {},
    "Self-Forcing": {"variant": SELF_FORCING},
    "contexts below the output level": {"variant": LOWERED},
    "noisy clean contexts": {
        "variant": SELF_FORCING,
        "conventions": Conventions(given="level", sinks="turn", context_noise=0.3),
    },
    "forward-KL": {"variant": with_forward_kl(TWO_WAYS)},
    "causal forward-KL": {"variant": with_forward_kl(CAUSAL)},
    "no guidance": {"guidance": 1.0},
    "one window, other levels": {
        "windows": 1,
        "levels": Levels(shift=6.0, lowest=0.0, highest=0.95),
        "critic_floor": 0.0,
        "critic_updates": 1,
    },
    "no replay": {"replay": None, "critic_batch": 4},
    "a critic that warms up": {"critic_warmup": 3},
    "a critic that warms up without replay": {"critic_warmup": 2, "replay": None, "critic_batch": 2},
    "an average that begins late": {
        "generator": GENERATOR.model_copy(update={"ema": 0.9, "ema_from": 2, "warmup": 2, "clip": 100.0}),
        "steps": 5,
    },
}


def assert_same_weights(actual: Tensor, expected: Tensor, rate: float) -> None:
    """Equal to 1e-6 except one weight in 500: Adam turns rounding of a gradient near 0 into a part of an update."""
    away = (actual - expected).abs()
    assert away.quantile(0.998) < 1e-6
    assert away.max() < 0.1 * rate


@pytest.mark.parametrize("case", CASES)
def test_every_step_equals_the_reference(case: str) -> None:
    """Metrics, weights, averages, replay and prompts after every step of a whole run."""
    job = make_job(**CASES[case])
    expected, settings, exits = write_out(job), job.settings, set()
    for step in range(settings.all_steps):
        exits.add(expected.draw_exit("exit step", step))
        before = weights(job, "student")
        assert distillation_step(job, step) == pytest.approx(expected.step(step), rel=2e-5)
        warming = not expected.student.updates
        assert torch.equal(weights(job, "student"), before) == warming
        assert_same_weights(weights(job, "student"), flat(expected.student.parameters), settings.generator.adamw.lr)
        assert_same_weights(weights(job, "critic"), flat(expected.critic.parameters), settings.critic.adamw.lr)
        if expected.student.averaged:
            averaged = flat(kept(job.student).parameters())
            assert_same_weights(averaged, flat(expected.student.average), settings.generator.adamw.lr)
        if settings.replay is not None:
            windows, text = (torch.stack(part) for part in zip(*expected.replay, strict=True))
            torch.testing.assert_close(job.replay["windows"], windows, rtol=0, atol=1e-4)
            assert torch.equal(job.replay["text"], text)
    assert exits == {0, 1, 2}
    assert expected.student.updates == settings.steps
    assert expected.student.averaged > 0
    assert job.prompts.calls == expected.prompts.calls  # type: ignore[attr-defined]
    assert (job.replay == {}) == (settings.replay is None)
    assert all(parameter.grad is None for parameter in job.teacher.parameters())


def test_the_student_is_unchanged_while_the_critic_warms_up() -> None:
    """Three warm-up updates of the critic take two steps of two; the generator's schedule begins after them."""
    job = make_job(critic_warmup=3)
    first, averaged = weights(job, "student"), flat(kept(job.student).parameters())
    for step in range(2):
        before = weights(job, "critic")
        assert set(distillation_step(job, step)) == {"critic", "critic_grad_norm"}
        assert torch.equal(weights(job, "student"), first)
        assert torch.equal(flat(kept(job.student).parameters()), averaged)
        assert not torch.equal(weights(job, "critic"), before)
        assert updates(job, "critic") == 2 * (step + 1)
    assert "dmd" in distillation_step(job, 2)
    assert not torch.equal(weights(job, "student"), first)
    assert (updates(job, "student"), updates(job, "critic")) == (1, 6)
    assert job.student.optimizers[0].param_groups[0]["lr"] == pytest.approx(GENERATOR.adamw.lr / 2)  # of warm-up 1


def updates(job: Distillation, role: str) -> int:
    """The number of updates that a network's optimiser has made."""
    states = [*getattr(job, role).optimizers[0].state.values()]
    (count,) = {int(state["step"]) for state in states} or {0}
    return count


def test_the_student_learns_from_frozen_scores_and_the_critic_from_the_students_videos() -> None:
    job = make_job()
    before = {role: weights(job, role) for role in ("student", "critic")}
    text = job.prompts(range(2))
    windows = job.roll_out(job.student.module, text, 7, range(2), 1, learn=True)  # type: ignore[arg-type]
    text = text.repeat_interleave(2, dim=0)
    student_step(job, lambda _: (windows, text), [range(2)], 0)
    assert not torch.equal(weights(job, "student"), before["student"])
    assert torch.equal(weights(job, "critic"), before["critic"])
    after = weights(job, "student")
    critic_step(job, lambda _: (windows.detach(), text), [range(4)], 0)
    assert torch.equal(weights(job, "student"), after)
    assert not torch.equal(weights(job, "critic"), before["critic"])


def test_variants_see_the_same_prompts_noise_and_levels() -> None:
    """Additions of a variant draw from their own random streams, so the first update is the same without them."""
    students, scores = {}, {}
    for name, options in {
        "replay": {},
        "fresh": {"replay": None, "critic_batch": 4},
        "more of the critic": {"critic_updates": 3, "critic_batch": 2},
        "forward-KL": {"variant": with_forward_kl(TWO_WAYS)},
    }.items():
        job = make_job(**options)
        scores[name] = distillation_step(job, 0)["dmd"]
        students[name] = weights(job, "student")
    assert len(set(scores.values())) == 1
    assert torch.equal(students["replay"], students["fresh"])
    assert torch.equal(students["replay"], students["more of the critic"])
    assert not torch.equal(students["replay"], students["forward-KL"])


def test_the_replay_holds_the_newest_windows_and_their_text() -> None:
    replay: dict[str, Tensor] = {}
    rows = torch.arange(10.0).view(10, 1)
    for first in range(0, 10, 2):
        remember(replay, rows[first : first + 2], -rows[first : first + 2], size=5)
        held = [*range(max(0, first + 2 - 5), first + 2)]
        assert replay["windows"].flatten().tolist() == held
        assert replay["text"].flatten().tolist() == [-number for number in held]


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({"batch": 3}, 3),
        ({"batch": 4, "micro_batch": 4, "critic_batch": 8}, 4),
        ({"batch": 4, "critic_batch": 7}, 7),  # windows of the replay
        ({"batch": 4, "critic_batch": 6, "replay": None}, 3),  # rollouts of two windows each
    ],
)
def test_processes_that_cannot_share_both_batches_are_refused(changes: dict[str, Any], batch: int) -> None:
    settings = SETTINGS.model_copy(update=changes)
    check_batches(settings, Ranks(0, 1))
    with pytest.raises(
        UserError, match=rf"^a batch of {batch} (in micro-batches of \d )?cannot be split equally over 2 processes"
    ):
        check_batches(settings, Ranks(0, 2))


def test_pairs_are_drawn_before_a_rollout_is_held_for_backward() -> None:
    """Pairs may have to be solved first, which takes memory."""
    job = make_job(with_forward_kl(TWO_WAYS))
    states, *others = PAIRS

    class Rows:
        rollouts_before: ClassVar[list[int]] = []

        def __len__(self) -> int:
            return len(states)

        def __getitem__(self, part: Any) -> Tensor:
            self.rollouts_before.append(len(cast(Prompts, job.prompts).calls))
            return states[part]

    job = dataclasses.replace(job, pairs=Pairs(Rows(), others[0], others[1].__getitem__))
    distillation_step(job, 0)
    assert Rows.rollouts_before == [0]


def test_a_variant_with_forward_kl_needs_pairs() -> None:
    job = dataclasses.replace(make_job(with_forward_kl(TWO_WAYS)), pairs=None)
    with pytest.raises(ValueError, match="forward-KL needs the teacher's pairs"):
        distillation_step(job, 0)


def test_diffusion_forcing_denoises_clean_videos_noised_block_by_block() -> None:
    """A sample's number determines its video, levels and noise; the student sees all blocks in one forward.

    A block at the clean level is context and is returned unchanged.
    """
    job = make_job(CAUSVID)
    assert job.forcing is not None
    student, (states, sigmas, text) = tiny_denoiser("x0", seed=1), PAIRS  # which would change a clean block
    windows, words = job.forcing(student, range(7, 19), learn=True)
    noise, seen = normals("forcing noise", SEED, range(7, 19), (3, 4, 4, 4)), []
    for place, number in enumerate(range(7, 19)):
        random = stream("forcing levels", SEED, sample=number)
        row, levels = int(random.integers(5)), torch.from_numpy(random.integers(4, size=2))
        seen += levels.tolist()
        sigma = sigmas[levels].repeat_interleave(2)[None]
        x = (1 - sigma.view(1, 1, 4, 1, 1)) * states[row, -1] + sigma.view(1, 1, 4, 1, 1) * noise[place]
        expected = student(x, sigma, text[row][None], BlockCausal(2, 2))
        for block in range(2):
            own = slice(2 * block, 2 * block + 2)
            if levels[block] < 3:
                torch.testing.assert_close(windows[place, :, own], expected[0, :, own], rtol=1e-4, atol=1e-4)
            else:
                assert torch.equal(windows[place, :, own], states[row, -1, :, own])
        assert torch.equal(words[place], text[row])
    assert set(seen) == {0, 1, 2, 3}
    assert windows.requires_grad
    alone, _ = job.forcing(student, range(9, 10), learn=False)
    torch.testing.assert_close(alone[0], windows[2].detach(), rtol=1e-4, atol=1e-4)
    assert not alone.requires_grad
    # Trajectories that were solved after clean blocks do not end in videos; the clips are used instead.
    assert job.pairs is not None
    job = dataclasses.replace(job, pairs=job.pairs._replace(states=torch.zeros(5, 4, 1), clips=states[:, -1:]))
    assert job.forcing is not None
    assert torch.equal(job.forcing(student, range(9, 10), learn=False)[0], alone)


@pytest.mark.parametrize("replay", [2, None])
def test_a_drawn_context_level_holds_for_a_whole_update(replay: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One level for all its micro-batches, within the bounds; the critic's fresh rollouts have their own draws."""
    drawn = HIAR.model_copy(update={"drawn": (0.25, 0.75)})
    job = make_job(drawn, replay=replay, micro_batch=1, critic_updates=2)
    roll_out, levels = SelfRollout.__call__, list[float | None]()

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        levels.append(arguments[-1])
        return roll_out(*arguments, **options)

    monkeypatch.setattr(SelfRollout, "__call__", recorded)
    for step in range(2):
        distillation_step(job, step)
    expected: list[float] = []
    for step in range(2):
        expected += [stream("context level", SEED, step=step).uniform(0.25, 0.75)] * 2
        if replay is None:
            for number in (2 * step, 2 * step + 1):
                expected += [stream("critic context level", SEED, step=number).uniform(0.25, 0.75)] * 3
    assert levels == expected
    assert len({*expected}) == (2 if replay else 6)
    assert all(0.25 <= level < 0.75 for level in expected)
    levels.clear()
    distillation_step(make_job(replay=replay), 0)
    assert {*levels} == {None}


@pytest.mark.parametrize("replay", [2, None])
def test_later_windows_are_learned_from_as_clips(replay: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a codec whose first latent frame is one picture; by student and critic, with and without a replay."""
    codec = WanCodec(AutoencoderKLWan(base_dim=4, z_dim=3, latents_mean=[0.1] * 3, latents_std=[1.5] * 3)).eval()
    job = dataclasses.replace(make_job(SELF_FORCING, replay=replay, critic_updates=1), codec=codec)
    seen: list[Tensor] = []
    for name in ("score_difference", "flow_matching"):
        computed = getattr(distillation, name)

        def recorded(*arguments: Any, computed: Any = computed) -> Any:
            seen.append(next(one for one in arguments if isinstance(one, Tensor)))
            return computed(*arguments)

        monkeypatch.setattr(distillation, name, recorded)
    made: list[Tensor] = []
    roll_out, loss = SelfRollout.__call__, distillation.dmd_loss
    frame_weights: list[Tensor] = []

    def recorded_rollout(*arguments: Any) -> Tensor:
        made.append(roll_out(*arguments))
        return made[-1]

    def recorded_loss(windows: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
        frame_weights.append(weights)
        return loss(windows, gradient, weights)

    monkeypatch.setattr(SelfRollout, "__call__", recorded_rollout)
    monkeypatch.setattr(distillation, "dmd_loss", recorded_loss)
    distillation_step(job, 0)
    assert frame_weights
    assert not any(weights[1::2, : VIDEO.block].any() for weights in frame_weights)
    assert all(weights[:, VIDEO.block :].all() and weights[::2].all() for weights in frame_weights)
    clips = [as_clips(windows, 2, VIDEO.block, codec) for windows in made]
    assert not torch.equal(clips[0][1, :, 0], made[0][1, :, 0])
    assert torch.equal(seen[0], clips[0])
    if replay is None:
        assert torch.equal(seen[1], clips[1])
    else:
        assert torch.equal(job.replay["windows"], clips[0].detach())
        assert {one.numpy().tobytes() for one in seen[1]} <= {one.detach().numpy().tobytes() for one in clips[0]}


@pytest.mark.parametrize("replay", [2, None])
def test_under_diffusion_forcing_nothing_is_rolled_out(replay: int | None) -> None:
    """DMD is computed on as many windows as rollouts would have, and the critic learns from other such windows."""
    job = make_job(CAUSVID, replay=replay)
    before = {role: weights(job, role) for role in ("student", "critic")}
    assert job.forcing is not None
    windows, text = job.forcing(job.student.module, range(2 * STUDENT, 2 * STUDENT + 4), learn=True)  # type: ignore[arg-type]
    if replay is not None:
        distillation_step(job, 0)
        assert torch.equal(job.replay["windows"], windows.detach())
        assert torch.equal(job.replay["text"], text)
    else:
        distillation_step(job, 0)
    assert job.prompts.calls == []  # type: ignore[attr-defined]
    assert all(not torch.equal(weights(job, role), before[role]) for role in before)
    other = make_job(CAUSVID, replay=replay)
    student_step(other, lambda _: (windows_of(other), text), [range(2)], 0)
    assert torch.equal(weights(job, "student"), weights(other, "student"))


def windows_of(job: Distillation) -> Tensor:
    """The windows of the student's first update."""
    assert job.forcing is not None
    return job.forcing(job.student.module, range(2 * STUDENT, 2 * STUDENT + 4), learn=True)[0]  # type: ignore[arg-type]


def test_diffusion_forcing_needs_pairs() -> None:
    job = dataclasses.replace(make_job(CAUSVID), pairs=None)
    with pytest.raises(ValueError, match="diffusion forcing needs the teacher's pairs"):
        distillation_step(job, 0)


def test_in_bf16_every_forward_is_autocast_and_weights_stay_fp32() -> None:
    variant = with_forward_kl(TWO_WAYS)
    job, samples = make_job(variant, "bf16", critic_updates=1), range(STUDENT, STUDENT + 2)
    expected, text = write_out(job), Prompts()(samples)
    with torch.autocast("cpu", torch.bfloat16):
        exit_step = expected.draw_exit("exit step", 0)
        windows = job.roll_out(expected.student.network, text, SEED, samples, exit_step, learn=True)
        text = text.repeat_interleave(2, dim=0)
        expected.replay = [*zip(windows.detach(), text, strict=True)]
        theirs = expected.student_update(windows, text) | expected.critic_update(0)
    metrics = distillation_step(job, 0)
    assert torch.equal(job.replay["windows"], windows.detach())
    assert weights(job, "student").dtype == weights(job, "critic").dtype == torch.float32
    full = distillation_step(make_job(variant, critic_updates=1), 0)
    for name in ("dmd", "forward_kl", "critic"):
        assert metrics[name] == pytest.approx(theirs[name], rel=1e-5)
        assert metrics[name] != pytest.approx(full[name], rel=5e-5)
        assert metrics[name] == pytest.approx(full[name], rel=0.02)


def test_a_replay_is_contiguous_like_one_read_from_a_state() -> None:
    """Some processors round convolutions differently for another memory layout."""
    replay: dict[str, Tensor] = {}
    for number in range(2):
        windows = torch.full((2, 3, 4, 5, 6), float(number)).to(memory_format=torch.channels_last_3d)
        remember(replay, windows, torch.zeros(2, 5, 8), size=3)
        assert replay["windows"].is_contiguous()
    assert replay["windows"][:, 0, 0, 0, 0].tolist() == [0, 1, 1]
