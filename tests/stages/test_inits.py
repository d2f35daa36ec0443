"""Every kind of init as a stage: from a teacher and its pairs to a checkpoint that can be distilled."""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import relative_error
from torch import Tensor

from hiar.config import CausalPairs, CausalTeacher, Params
from hiar.errors import UserError
from hiar.grid import make_grid
from hiar.io.artifacts import read_manifest, write_manifest
from hiar.io.shards import read_shard, write_shard
from hiar.io.states import newest
from hiar.losses.consistency import causal_consistency
from hiar.losses.flow import bell_weights, stratified_sigmas
from hiar.losses.regression import forced_regression, ode_regression
from hiar.losses.teacher_forcing import forced_flow_matching
from hiar.models.attention import BlockCausal, TeacherForced
from hiar.models.denoiser import Denoiser
from hiar.models.generator import load_generator
from hiar.noise import normals, stream
from hiar.parameters import merge, parse_params, read_yaml
from hiar.rollout.ode import causal_ode_states
from hiar.schedule import solver_sigmas, step_sigmas
from hiar.stages import distill, init
from hiar.stages.inits import causal_ode, consistency, ode, teacher_forcing
from hiar.stages.inits.job import Job, Trained
from hiar.stages.pairs import Trajectories, load_pairs, pair_captions
from hiar.tracking.stage import Run

MADE = Path("artifacts", "seed-0")
SEED = 7  # of all draws; not 0, so that a forgotten seed is noticed
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
PAIRS = {"count": 5, "solver_steps": 8, "guidance": 1.5, "batch": 2, "shard": 3}
KINDS: dict[str, dict[str, Any]] = {
    "teacher_forcing": {"training": TRAINING, "sigma_floor": 0.5},
    "causal_ode": {"teacher": TEACHER, "pairs": PAIRS, "training": TRAINING, "sigma_floor": 0.5},
    "consistency": {"teacher": TEACHER, "solver_steps": 8, "guidance": 1.5, "training": TRAINING},
}
SMALL = {
    "schedule": {"teacher_shift": 2.5},  # in the smoke experiment it equals the student's
    "distill": {"steps": 1, "batch": 2, "windows": 1, "critic_warmup": 0, "critic_batch": 2},
}
CAUSVID = {"order": "block_first", "context": "finished", "level": None, "forward_kl": None, "forcing": "diffusion"}


def init_params(smoke: Path, kind: str, source: str | None = None, **changes: Any) -> Params:
    """Parameters with an init of this kind; ``source``: of the pairs."""
    others = {"variants": {"causvid": CAUSVID}, "pairs": {"source": source}}
    tree = merge(read_yaml(smoke / "params.yaml"), SMALL | others)
    return parse_params(merge(tree, {"init": {"kind": kind} | KINDS[kind] | changes}), Path("params.yaml"))


@pytest.fixture
def work(smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the smoke experiment's teacher and pairs, accepted with any parameters."""
    monkeypatch.setattr("hiar.stages.common.check_fits", lambda *_: None)
    monkeypatch.setattr(init, "Job", lambda work, seed, *others: Job(work, SEED, *others))
    for name in ("teacher", "pairs"):
        shutil.copytree(smoke / MADE / name, tmp_path / MADE / name)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_student_that_distils(kind: str, smoke: Path, work: Path) -> None:
    params = init_params(smoke, kind)
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


def test_finished_trainings_and_shards_are_not_repeated(
    smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage interrupted before its last training ends with the same bytes as an undisturbed one."""
    params = init_params(smoke, "causal_ode")
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
    solve, solved = causal_ode._solve, []

    def recorded(job: Job, teacher: Denoiser, spec: CausalPairs, numbers: range) -> Tensor:
        solved.append(numbers)
        return solve(job, teacher, spec, numbers)

    monkeypatch.setattr(causal_ode, "_solve", recorded)
    init.run(params, work, 0)
    assert solved == [range(3, 5)]
    assert all(torch.equal(undisturbed[name], value) for name, value in load_file(work / WEIGHTS).items())


def test_causal_trajectories_are_the_causal_teachers(smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the student starts from its weights. A trajectory depends only on its number, not on batches and shards."""
    params, seen = init_params(smoke, "causal_ode"), {}

    def regress(job: Job, start: Denoiser, pairs: Trajectories, *others: object) -> Trained:
        seen.update(start=start, pairs=pairs, states=pairs.states[torch.arange(5)])
        return ode.regress(job, start, pairs, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(causal_ode, "regress", regress)
    init.run(params, work, 0)
    pairs, generator = seen["pairs"], load_generator(work / MADE / "teacher")
    levels = step_sigmas(4, params.schedule.student_shift)
    assert torch.equal(pairs.sigmas, levels)
    assert pairs.captions == pair_captions(params, SEED, range(5)) != load_pairs(work / MADE / "pairs").captions[:5]
    sigmas = solver_sigmas(levels, 2, params.schedule.teacher_shift)
    grid = make_grid("finished", blocks=5, steps=8, window=5)
    noise = normals("causal pairs noise", SEED, range(5), (4, 15, 8, 8))
    text, nothing = generator.embed(pairs.captions), generator.embed_nothing().expand(5, -1, -1)
    states = causal_ode_states(seen["start"], noise, sigmas, text, nothing, 1.5, grid)[:, ::2]
    torch.testing.assert_close(seen["states"], states, rtol=1e-4, atol=1e-4)
    bidirectional = causal_ode_states(generator.denoiser, noise, sigmas, text, nothing, 1.5, grid)[:, ::2]
    assert relative_error(bidirectional, states) > 0.01


def test_the_regression_draws_pairs_and_a_level_for_each_block(
    smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block has its own level, possibly the clean one; each update draws its own trajectories."""
    calls: list[Any] = []

    def spy(student: Denoiser, *rest: object) -> Tensor:
        calls.append(rest)
        return ode_regression(student, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ode, "ode_regression", spy)
    training = {"steps": 2, "batch": 4, "micro_batch": 2}
    tree = merge(read_yaml(smoke / "params.yaml"), {"init": {"training": training, "sigma_floor": 0.3}})
    init.run(parse_params(tree, Path("params.yaml")), work, 0)
    pairs, generator = load_pairs(work / MADE / "pairs"), load_generator(work / MADE / "teacher")
    assert len(calls) == 2 * 2
    for number, (x, x0, sigma, text, attention, floor, _) in enumerate(calls):
        step, part = divmod(number, 2)
        half = slice(2 * part, 2 * part + 2)
        random = stream("init batch", SEED, step=step)
        rows = torch.from_numpy(random.integers(16, size=4))[half]
        levels = torch.from_numpy(random.integers(5, size=(4, 5)))[half]
        states = pairs.states[rows]
        assert torch.equal(x0, states[:, -1])
        for sample, block in itertools.product(range(2), range(5)):
            frames = slice(3 * block, 3 * block + 3)
            assert torch.equal(x[sample, :, frames], states[sample, levels[sample, block], :, frames])
        assert torch.equal(sigma, pairs.sigmas[levels])
        assert torch.equal(text, generator.embed([pairs.captions[row] for row in rows]))
        assert (attention, floor) == (BlockCausal(3, 5), 0.3)


def test_pairs_with_clips_are_regressed_with_the_clips_as_context(
    smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student starts from the causal teacher, which learns from the clips instead of the pairs' clean ends."""
    folder, calls, started, clean = work / MADE / "pairs", [], [], []
    facts = {name: read_manifest(folder, "pairs")[name] for name in ("count", "shard", "sigmas")}
    for path in folder.glob("*.safetensors"):
        held = read_shard(path)
        clips = normals("measuring", int(path.stem), range(len(held["states"])), held["states"].shape[2:])
        write_shard(path, held | {"clips": clips[:, None]}, {"first": "0"})
    write_manifest(folder, "pairs", clips=True, **facts)

    def spy(student: Denoiser, *rest: object) -> Tensor:
        calls.append(rest)
        return forced_regression(student, *rest)  # type: ignore[arg-type]

    def regress(job: Job, start: Denoiser, *others: Any) -> Trained:
        started.append((start, teacher_forcing.causal_teacher(job, params.init.teacher)))  # type: ignore[union-attr]
        return ode.regress(job, start, *others)

    def forced(model: Denoiser, x0: Tensor, *rest: object) -> Tensor:
        clean.append(x0)
        return forced_flow_matching(model, x0, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ode, "forced_regression", spy)
    monkeypatch.setattr(causal_ode, "regress", regress)
    monkeypatch.setattr(teacher_forcing, "forced_flow_matching", forced)
    params = init_params(smoke, "causal_ode", pairs=None, training=TRAINING | {"micro_batch": 2}, source="theirs")
    init.run(params, work, 0)
    pairs, generator = load_pairs(folder), load_generator(work / MADE / "teacher")
    assert pairs.clips is not None
    ((start, teacher),) = started
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in teacher.state_dict().items())
    everything = pairs.clips[torch.arange(16), 0]
    assert all(any(torch.equal(one, clip) for clip in everything) for x0 in clean for one in x0)
    assert len(calls) == 2 * 2
    for number, (x, x0, clip, sigma, text, attention, floor) in enumerate(calls):
        step, part = divmod(number, 2)
        half = slice(2 * part, 2 * part + 2)
        random = stream("init batch", SEED, step=step)
        rows = torch.from_numpy(random.integers(16, size=4))[half]
        levels = torch.from_numpy(random.integers(4, size=(4, 5)))[half]  # no clean level: it is the target
        states = pairs.states[rows]
        assert torch.equal(x0, states[:, -1])
        assert torch.equal(clip, everything[rows])
        for sample, block in itertools.product(range(2), range(5)):
            frames = slice(3 * block, 3 * block + 3)
            assert torch.equal(x[sample, :, frames], states[sample, levels[sample, block], :, frames])
        assert torch.equal(sigma, pairs.sigmas[levels])
        assert torch.equal(text, generator.embed([pairs.captions[row] for row in rows]))
        assert (attention, floor) == (TeacherForced(3, 5), 0.5)


def test_consistency_uses_the_causal_teacher_and_the_clean_ends_of_the_pairs(
    smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, started, logged = [], {}, []
    params = init_params(smoke, "consistency", training=TRAINING | {"steps": 3, "micro_batch": 2})

    def causal_teacher(job: Job, spec: CausalTeacher) -> Denoiser:
        started["teacher"] = teacher_forcing.causal_teacher(job, spec)
        return started["teacher"]

    def spy(student: Denoiser, average: Denoiser, *rest: object) -> Tensor:
        calls.append((copy.deepcopy(student.state_dict()), copy.deepcopy(average.state_dict()), *rest))
        return causal_consistency(student, average, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(consistency, "causal_teacher", causal_teacher)
    monkeypatch.setattr(consistency, "causal_consistency", spy)
    monkeypatch.setattr(Run, "log", lambda run, step, metrics: logged.append(set(metrics)))
    init.run(params, work, 0)
    # Both trainings belong to one run, so their curves have different names.
    assert {"causal_teacher_loss", "causal_teacher_grad_norm"} <= logged[0]
    assert {"loss", "grad_norm"} <= logged[-1]
    assert not any({"causal_teacher_loss", "loss"} <= names for names in logged)
    pairs, generator = load_pairs(work / MADE / "pairs"), load_generator(work / MADE / "teacher")
    teacher = started["teacher"]
    assert len(calls) == 3 * 2
    for number, call in enumerate(calls):
        step, part = divmod(number, 2)
        half = slice(2 * part, 2 * part + 2)
        student, average, solver, x0, noise, sigmas, places, text, nothing, guidance, attention = call
        random = stream("init batch", SEED, step=step)
        rows = torch.from_numpy(random.integers(16, size=4))[half]
        assert solver is teacher
        assert torch.equal(x0, pairs.states[rows][:, -1])
        assert torch.equal(noise, normals("init noise", SEED, range(4), x0.shape[1:], step=step)[half])
        assert torch.equal(places, torch.from_numpy(random.integers(8, size=(4, 5)))[half])
        levels = step_sigmas(4, params.schedule.student_shift)
        assert torch.equal(sigmas, solver_sigmas(levels, 2, params.schedule.teacher_shift))
        assert torch.equal(text, generator.embed([pairs.captions[row] for row in rows]))
        assert torch.equal(nothing, generator.embed_nothing().expand(2, -1, -1))
        assert (guidance, attention) == (1.5, TeacherForced(3, 5))
        # Both start from the causal teacher's weights; the average then copies those of the first update.
        if step == 0:
            for weights in (student, average):
                assert all(torch.equal(weights[name], value) for name, value in teacher.state_dict().items())
        if step == 2:
            assert any(not torch.equal(student[name], value) for name, value in average.items())
    kept = load_generator(work / MADE / "init").denoiser.state_dict()
    assert any(not torch.equal(kept[name], value) for name, value in calls[-1][1].items())


def test_a_causal_teacher_learns_from_clean_ends_with_caption_dropout(
    smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block has its own level, and a batch is spread over all levels."""
    calls, params = [], init_params(smoke, "teacher_forcing", training=TRAINING | {"micro_batch": 2})

    def spy(model: Denoiser, *rest: object) -> Tensor:
        calls.append(rest)
        return forced_flow_matching(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(teacher_forcing, "forced_flow_matching", spy)
    some, always = (
        params.model_copy(update={"teacher": params.teacher.model_copy(update={"caption_dropout": share})})
        for share in (0.25, 1.0)  # a quarter drops other rows in one half of the batch than in the other
    )
    bell = some.model_copy(update={"init": some.init.model_copy(update={"weighting": "bell"})})
    for one, dropped in ((params, False), (bell, False), (always, True)):
        calls.clear()
        spec = one.init
        init.run(one, work, 0)
        pairs, generator = load_pairs(work / MADE / "pairs"), load_generator(work / MADE / "teacher")
        assert len(calls) == 2 * 2
        for number, (x0, noise, sigma, text, attention, floor, weights) in enumerate(calls):
            step, part = divmod(number, 2)
            half = slice(2 * part, 2 * part + 2)
            random = stream("causal teacher batch", SEED, step=step)
            rows = torch.from_numpy(random.integers(16, size=4))[half]
            lost = (random.random(4) < one.teacher.caption_dropout)[half]
            levels = stratified_sigmas(20, one.schedule.teacher_shift, random)
            captions = ["" if drop else pairs.captions[row] for drop, row in zip(lost, rows, strict=True)]
            assert torch.equal(x0, pairs.states[rows][:, -1])
            assert torch.equal(noise, normals("causal teacher noise", SEED, range(4), x0.shape[1:], step=step)[half])
            assert torch.equal(sigma, levels.view(4, 5)[half])
            assert torch.equal(text, generator.embed(captions))
            assert (attention, floor) == (TeacherForced(3, 5), spec.sigma_floor)  # type: ignore[union-attr]
            belled = bell_weights(sigma, one.schedule.teacher_shift)
            assert torch.equal(weights, belled) if one is bell else weights is None
            assert all(lost) or not dropped
        shutil.rmtree(work / MADE / "init")


def test_causal_trajectories_that_are_not_finite_are_named(
    smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = init_params(smoke, "causal_ode")
    pairs = params.init.pairs.model_copy(update={"guidance": 1e30})  # type: ignore[union-attr]
    spoiled = params.model_copy(update={"init": params.init.model_copy(update={"pairs": pairs})})
    with pytest.raises(UserError, match=r"init\.pairs: trajectory 0: its state after 1 .* lower init\.pairs\.guidance"):
        init.run(spoiled, work, 0)
    solve = causal_ode._solve

    def broken(job: Job, teacher: Denoiser, spec: CausalPairs, numbers: range) -> Tensor:
        states = solve(job, teacher, spec, numbers)
        states[[number == 4 for number in numbers], 2] = torch.nan
        return states

    monkeypatch.setattr(causal_ode, "_solve", broken)
    with pytest.raises(UserError, match=r"^init\.pairs: trajectory 4: its state after 2 steps is not finite"):
        init.run(params, work, 0)


def test_micro_batches_of_the_regression_are_weighted_by_the_whole_batchs_noisy_blocks(
    smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that is shown clean has no loss, and micro-batches may have different numbers of them."""
    training = {"training": {"steps": 1, "batch": 8, "micro_batch": 4}}
    params = parse_params(merge(read_yaml(smoke / "params.yaml"), {"init": training}), Path("params.yaml"))
    seen, regression = [], ode.ode_regression

    def recorded(*given: Any) -> Tensor:
        seen.append((given[3], given[-1]))
        return regression(*given)

    monkeypatch.setattr(ode, "ode_regression", recorded)
    init.run(params, work, 0)
    sigmas, shares = zip(*seen, strict=True)
    share = (torch.cat(sigmas) > 0).float().mean()
    assert len(sigmas) == 2
    assert shares == (share, share)
    assert all((sigma > 0).float().mean() != share for sigma in sigmas)  # otherwise the test proves nothing


def test_a_causal_teachers_state_cannot_be_restarted_from(
    smoke: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the student's: it is neither offered when a loss is not finite, nor accepted as one of its states."""
    params, losses = init_params(smoke, "consistency"), iter((1.0, math.nan))
    runtime = params.runtime.model_copy(update={"checkpoint_minutes": 1e-9})
    params = params.model_copy(update={"runtime": runtime})
    forced = teacher_forcing.forced_flow_matching
    with monkeypatch.context() as patch:
        patch.setattr(teacher_forcing, "forced_flow_matching", lambda *given: next(losses) * forced(*given))
        with pytest.raises(UserError, match=r"causal teacher: loss = nan at step 1; .* and start over$"):
            init.run(params, work, 0)
    state = newest(work / MADE / "init.partial" / teacher_forcing.CAUSAL_TEACHER)
    assert state is not None
    with pytest.raises(UserError, match=r"belongs to other networks or optimisers .* is missing"):
        init.run(params, work, 0, state)


@pytest.mark.parametrize(
    ("kind", "changes", "line"),
    [
        ("ode", {"kind": "od"}, "init.kind = 'od': there is no such kind; known: adopted, ode, teacher_forcing"),
        (
            "ode",
            {"training": None},
            "init.training = None: is missing; give it, or for an imported student use kind: adopted",
        ),
        ("consistency", {"solver_steps": 6}, "init.solver_steps = 6: must be a multiple of schedule.student_steps = 4"),
        (
            "causal_ode",
            {"pairs": None},
            "init.pairs = None: is missing; give the settings of the causal teacher's pairs, or import pairs with",
        ),
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
def test_invalid_inits_are_refused_by_field(kind: str, changes: dict[str, Any], line: str) -> None:
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
