"""How training stages follow their parameters: networks, lengths, samples, and the states they keep."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from accelerate.state import AcceleratorState
from interrupted import interrupt
from students import save_student, smoke_params
from torch import Tensor

from hiar.config import Params
from hiar.errors import UserError
from hiar.io.artifacts import write_manifest
from hiar.io.states import states
from hiar.io.video import read_mp4
from hiar.losses.flow import flow_matching, stratified_sigmas
from hiar.models.attention import Bidirectional
from hiar.models.denoiser import Denoiser
from hiar.models.generator import Generator, load_generator
from hiar.models.pixels import to_frames, to_video
from hiar.noise import normals, stream
from hiar.parameters import merge, parse_params
from hiar.stages import codec, distill, init, pairs, teacher, truth
from hiar.stages.common import Paths, sample_world
from hiar.stages.inits import job
from hiar.stages.pairs import Trajectories
from hiar.stages.solved_pairs import open_pairs
from hiar.statistics.validations import BOTH_WAYS, read_validations
from hiar.training.loop import train
from hiar.training.parallel import shard
from hiar.training.role import Role, kept, lr_factor
from hiar.training.self_rollout import SelfRollout
from hiar.worlds.interface import FIRST_CLIP
from hiar.worlds.shapes import Shapes
from hiar.worlds.shapes.codec import PatchCodec
from hiar.worlds.shapes.text import WordEncoder

OPTIMIZER = {"warmup": 1, "decay": "cosine", "muon": None}
DISTILL = {"windows": 1, "steps": 4, "critic_warmup": 4, "generator": OPTIMIZER, "critic": OPTIMIZER}
SEED = 1  # the second seed: nothing of the first one exists
UPDATES = 6  # in each stage
TRAINING = {"steps": UPDATES, "batch": 2}


class Recorded(NamedTuple):
    """A distillation: weights before it, roles after it, and rollouts' samples, by whether they train the student.

    texts: the embedded prompts of all samples.
    """

    before: dict[str, dict[str, Tensor]]
    roles: dict[str, Role]
    samples: dict[bool, list[int]]
    texts: list[tuple[range, Tensor]]


def params_of(runtime: dict[str, Any] | None = None, **changes: Any) -> Params:
    return smoke_params(
        seeds=[0, SEED],
        codec={"training": TRAINING},
        teacher={"training": TRAINING},
        pairs={"count": 4, "batch": 2, "shard": 2},
        init={"training": TRAINING},
        distill=DISTILL | changes,
        runtime=runtime or {},
    )


def merged(params: Params, changes: dict[str, Any]) -> Params:
    return parse_params(merge(params.model_dump(mode="json"), changes), Path("params.yaml"))


def run(name: str, params: Params, workspace: Path) -> bytes:
    """Run a stage that trains; returns its curve."""
    if name == "distill/hiar":
        distill.run(params, workspace, SEED, "hiar")
    else:
        {"codec": codec, "teacher": teacher, "init": init}[name].run(params, workspace, SEED)
    return (workspace / "curves" / f"seed-{SEED}" / f"{name}.csv").read_bytes()


def record_networks(module: Any, patch: pytest.MonkeyPatch) -> dict[str, tuple[Any, Any]]:
    """Of each role that a stage trains, once it has: its average, and its network after the last update."""
    found: dict[str, tuple[Any, Any]] = {}

    def trained(label: str, steps: int, step: Any, roles: dict[str, Role], *others: Any, **options: Any) -> Any:
        curve = train(label, steps, step, roles, *others, **options)
        found.update({name: (deepcopy(kept(role)), deepcopy(role.module)) for name, role in roles.items()})
        return curve

    patch.setattr(module, "train", trained)
    return found


def assert_averaged(*networks: Any) -> None:
    """The first network, which was saved, is the second one, the average, and not the third, the last."""
    saved, average, last = (network.state_dict() for network in networks)
    assert saved.keys() == average.keys() == last.keys()
    assert all(torch.equal(saved[name], value) for name, value in average.items())
    assert any(not torch.equal(saved[name], value) for name, value in last.items())


def distil_and_record(params: Params, workspace: Path) -> Recorded:
    """Distil, and record what is trained."""
    recorded, roll_out = Recorded({}, {}, {True: [], False: []}, []), SelfRollout.__call__

    def rolled_out(self: SelfRollout, *given: Any) -> Tensor:
        _, text, seed, samples, _, learn, _ = given
        assert seed == SEED
        recorded.samples[learn].extend(samples)
        recorded.texts.append((samples, text))
        return roll_out(self, *given)

    def trained(label: str, steps: int, step: Any, roles: dict[str, Role], *others: Any, **options: Any) -> Any:
        for name, role in roles.items():
            recorded.before[name] = {key: value.clone() for key, value in role.module.state_dict().items()}
        recorded.roles.update(roles)
        return train(label, steps, step, roles, *others, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "train", trained)
        patch.setattr(SelfRollout, "__call__", rolled_out)
        run("distill/hiar", params, workspace)
    return recorded


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a codec, a teacher, its pairs, and an init with other weights."""
    workspace = tmp_path_factory.mktemp("parents")
    paths = Paths(workspace, SEED)
    for folder, seed, stage in ((paths.teacher, 1, "teacher"), (paths.init, 2, "init")):
        save_student(folder, seed=seed)
        write_manifest(folder, "checkpoint", stage=stage, seed=SEED, variant=None)
    codec.run(params_of(), workspace, SEED)
    pairs.run(params_of(), workspace, SEED)
    return workspace


@pytest.fixture(scope="module")
def recorded(parents: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A distillation with a replay."""
    workspace = tmp_path_factory.mktemp("seen") / "work"
    return distil_and_record(params_of(), Path(shutil.copytree(parents, workspace)))


def test_the_runtime_decides_what_is_offloaded(
    parents: Path, recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[tuple[bool, torch.dtype]] = []

    def sharded(network: Denoiser, ranks: Any, *, offload: bool, dtype: Any) -> None:
        shard(network, ranks, offload=offload, dtype=dtype)
        placed.append((offload, network.dtype))

    monkeypatch.setattr(distill, "shard", sharded)
    runtime = {"processes": 1, "offload": ["real_score", "optimizers"], "checkpointing": True}
    away = distil_and_record(params_of(runtime=runtime), Path(shutil.copytree(parents, tmp_path / "work")))
    assert placed == [(True, torch.float32)]
    assert [role.offloaded for role in away.roles.values()] == [True, True]
    assert [role.offloaded for role in recorded.roles.values()] == [False, False]
    for one, saving in ((away, True), (recorded, False)):
        assert [role.module.checkpointing for role in one.roles.values()] == [saving, saving]


@pytest.mark.parametrize("processes", [None, 1])
def test_a_separate_real_score_is_frozen_in_the_precision_of_training(
    processes: int | None, parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[Denoiser] = []
    step = distill.distillation_step
    monkeypatch.setattr(distill, "distillation_step", lambda job, at: scored.append(job.teacher) or step(job, at))
    work = Path(shutil.copytree(parents, tmp_path / "work"))
    runtime = {"processes": processes, "precision": "bf16"}
    params = params_of(runtime=runtime, real_score=str(Paths(parents, SEED).teacher))
    shutil.rmtree(Paths(work, SEED).pairs)
    AcceleratorState._reset_state(True)  # accelerate otherwise allows one precision per process
    pairs.run(params, work, SEED)
    recorded = distil_and_record(params, work)
    AcceleratorState._reset_state(True)
    assert {one.dtype for one in scored} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in scored[0].parameters())
    assert {weight.dtype for role in recorded.roles.values() for weight in role.module.parameters()} == {torch.float32}


def test_a_distillation_refuses_pairs_at_other_levels_than_its_regulariser_needs(
    parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of imported pairs, if a variant with more steps of forward-KL is compared later."""
    opened = distill.open_pairs

    def imported(*given: Any) -> Trajectories:
        pairs = opened(*given)
        return replace(pairs, sigmas=torch.tensor([1.0, *(0.9 * pairs.sigmas[1:]).tolist()]))

    monkeypatch.setattr(distill, "open_pairs", imported)
    work = Path(shutil.copytree(parents, tmp_path / "work"))
    compared = {"distill": ["hiar"], "walked": []}
    params = merged(params_of(), {"variants": {"hiar": {"forward_kl": {"steps": 2}}}, "compare": compared})
    with pytest.raises(UserError, match=r"pairs: its levels are 1, 0\.\d+, .*, the student's 1, "):
        distill.run(params, work, SEED, "hiar")


def test_the_student_begins_as_the_init_and_the_critic_as_the_teacher(parents: Path, recorded: Recorded) -> None:
    paths = Paths(parents, SEED)
    for role, folder in (("student", paths.init), ("critic", paths.teacher)):
        weights = load_generator(folder).denoiser.state_dict()
        assert all(torch.equal(recorded.before[role][name], value) for name, value in weights.items())
    spec = params_of().distill
    assert spec.generator != spec.critic
    assert {name: role.settings for name, role in recorded.roles.items()} == {
        "student": spec.generator,
        "critic": spec.critic,
    }


def test_both_learning_rates_decay_to_zero_with_the_last_update(recorded: Recorded) -> None:
    """Also for a critic that first warms up alone and takes several updates per student update."""
    updates = {}
    for name, role in recorded.roles.items():
        (optimizer,) = role.optimizers
        (updates[name],) = {int(state["step"]) for state in optimizer.state.values()}
        assert lr_factor(role.settings, updates[name] - 1, role.steps) > 0
        assert lr_factor(role.settings, updates[name], role.steps) == pytest.approx(0)
    assert updates["critic"] > 2 * updates["student"] > 0


def test_no_sample_is_used_twice_or_by_both_student_and_critic(parents: Path, tmp_path: Path) -> None:
    """Without replay the critic has its own rollouts; student and critic each use their own prompts."""
    recorded = distil_and_record(params_of(replay=None), Path(shutil.copytree(parents, tmp_path / "work")))
    for purpose, numbers in (("distill", recorded.samples[True]), ("critic", recorded.samples[False])):
        assert len(numbers) == len({*numbers}) > 0
        assert all(0 <= number - FIRST_CLIP[purpose] < 1000 for number in numbers)
    source = load_generator(Paths(parents, SEED).teacher)
    for samples, text in recorded.texts:
        prompts = source.world.prompts(seed=SEED, first=samples.start, count=len(samples))
        assert torch.equal(text, source.embed(prompts))


def test_pairs_have_the_noise_and_captions_of_their_seed(parents: Path) -> None:
    made = pairs.load_pairs(Paths(parents, SEED).pairs)
    starts = made.states[torch.arange(4)][:, 0]
    assert torch.equal(starts, normals("pairs noise", SEED, range(4), starts.shape[1:]))
    world = load_generator(Paths(parents, SEED).teacher).world
    assert made.captions == world.prompts(seed=SEED, first=FIRST_CLIP["pairs"], count=4)
    rows = torch.tensor([3, 1])  # solved when they are drawn, they are the same
    solved = open_pairs(merged(params_of(), {"pairs": {"stored": False}}), parents, SEED, torch.device("cpu"))
    torch.testing.assert_close(solved.states[rows], made.states[rows], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["codec", "teacher"])
def test_every_update_uses_new_clips_and_noise(
    name: str, parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[int] = []
    noise: list[Tensor] = []
    clips, module = Shapes.clips, {"codec": codec, "teacher": teacher}[name]

    def record_clips(world: Shapes, *, first: int, count: int, **others: int) -> tuple[Tensor, list[str]]:
        recorded.extend(range(first, first + count))
        return clips(world, first=first, count=count, **others)

    def record_noise(*others: Any, **places: int) -> Tensor:
        rows = normals(*others, **places)
        noise.extend(rows)
        return rows

    workspace = Path(shutil.copytree(parents, tmp_path / "work"))
    shutil.rmtree(Paths(workspace, SEED).root / name)
    monkeypatch.setattr(Shapes, "clips", record_clips)
    monkeypatch.setattr(module, "normals", record_noise)
    run(name, params_of(), workspace)
    drawn = UPDATES * TRAINING["batch"]
    trained = [number for number in recorded if FIRST_CLIP["training"] <= number < FIRST_CLIP["held-out"]]
    assert len({*trained[-drawn:]}) == drawn  # before them, the codec's initial weights were fitted to some clips
    assert len(torch.stack(noise).unique(dim=0)) == len(noise) == drawn


def test_prompts_are_announced_for_every_part_that_a_batch_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, as an encoder as large as Wan's is loaded for it, and no further than the training goes."""
    monkeypatch.setattr(distill, "AHEAD", 4)
    spec = params_of(steps=3, batch=2).distill
    first, announced = FIRST_CLIP["distill"], []
    world = SimpleNamespace(base=Path("base"), prompts=lambda seed, first, count: [*range(first, first + count)])
    teacher = SimpleNamespace(world=world, prepare=announced.append, embed=lambda texts: texts)
    prompts = distill.Prompts(cast(Generator, teacher), SEED, spec)
    assert prompts(range(first + 3, first + 5)) == [first + 3, first + 4]  # type: ignore[comparison-overlap]
    count = spec.all_steps * spec.batch
    assert count > 8
    assert announced == [[*range(first, first + 4)], [*range(first + 4, first + 8)]]
    prompts(range(first + count - 1, first + count))
    assert announced[2:] == [[*range(first + (count - 1) // 4 * 4, first + count)]]


def test_true_videos_have_the_prompts_of_the_samples(
    parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth, "BATCH", 2)
    params, numbers = params_of(), {"seed": SEED, "first": FIRST_CLIP["sample"], "count": 5}
    assert truth.write_true_videos(params, parents, SEED, 5, tmp_path) == sample_world(params).prompts(**numbers)
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [f"{number:04d}.mp4" for number in range(5)]
    frames, _ = sample_world(params).clips(**numbers, frames=params.sample.frames)
    codec = PatchCodec.load(Paths(parents, SEED).codec)
    expected = to_frames(codec.decode(codec.encode(to_video(frames)))).float()
    for number, path in enumerate(paths):
        away = (read_mp4(path).float() - expected).abs().flatten(1).mean(1)
        assert int(away.argmin()) == number


def test_the_teacher_learns_as_its_own_section_says(
    parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of other sections, which are often the same, all differ from its own here."""
    calls: list[Any] = []
    captions: list[list[str]] = []
    training = TRAINING | {"steps": 2, "batch": 4, "micro_batch": 2}
    own = {"caption_dropout": 0.5, "sigma_floor": 0.3, "guidance": 2.5, "solver_steps": 6, "training": training}
    params = merged(params_of({"checkpointing": True}), {"teacher": own, "schedule": {"teacher_shift": 2.5}})
    encode = WordEncoder.encode

    def spy(denoiser: Denoiser, *given: Any) -> Tensor:
        calls.append((denoiser.checkpointing, *given))
        return flow_matching(denoiser, *given)

    def encoded(text: WordEncoder, said: list[str]) -> Tensor:
        captions.append(said)
        return encode(text, said)

    workspace = Path(shutil.copytree(parents, tmp_path / "work"))
    paths = Paths(workspace, SEED)
    shutil.rmtree(paths.teacher)
    monkeypatch.setattr(teacher, "flow_matching", spy)
    monkeypatch.setattr(WordEncoder, "encode", encoded)
    networks = record_networks(teacher, monkeypatch)
    run("teacher", params, workspace)
    world, coder, dropped = Shapes(params.world), PatchCodec.load(paths.codec), set()
    assert len(calls) == len(captions) == 2 * 2
    for number, (checkpointing, x0, noise, sigma, _, attention, floor) in enumerate(calls):
        step, part = divmod(number, 2)
        half = slice(2 * part, 2 * part + 2)
        random = stream("teacher batch", SEED, step=step)
        lost = (random.random(4) < 0.5)[half]
        frames, said = world.clips(seed=SEED, first=4 * step + 2 * part, count=2, frames=params.video.frames)
        assert captions[number] == ["" if drop else one for drop, one in zip(lost, said, strict=True)]
        assert torch.equal(x0, coder.encode(to_video(frames)))
        assert torch.equal(noise, normals("teacher noise", SEED, range(4), x0.shape[1:], step=step)[half])
        assert torch.equal(sigma, stratified_sigmas(4, 2.5, random)[half])
        assert (checkpointing, attention, floor) == (True, Bidirectional(), 0.3)
        dropped |= {*lost.tolist()}
    assert dropped == {True, False}
    made = load_generator(paths.teacher)
    for name, network in (("denoiser", made.denoiser), ("text", made.text)):
        assert_averaged(network, *(one[name] for one in networks["teacher"]))
    card = made.card
    assert (card.guidance, card.solver_steps, card.schedule, card.seed) == (2.5, 6, params.schedule, SEED)
    assert card.precision == "no"
    assert teacher._card(params_of({"precision": "bf16"}), SEED, "flow", coordinates=False).precision == "bf16"


def test_the_codec_learns_from_noise_of_any_strength_and_is_measured_on_other_clips(
    parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = merged(params_of(), {"codec": {"noise": 0.4, "training": {"steps": 2, "batch": 4, "micro_batch": 2}}})
    seen: list[Tensor] = []
    loss = PatchCodec.loss

    def spy(coder: PatchCodec, video: Tensor, noise: Tensor) -> Tensor:
        seen.append(noise)
        return loss(coder, video, noise)

    monkeypatch.setattr(PatchCodec, "loss", spy)
    networks = record_networks(codec, monkeypatch)
    run("codec", params, tmp_path)
    assert len(seen) == 2 * 2
    for number, noise in enumerate(seen):
        step, part = divmod(number, 2)
        strength = 0.4 * torch.from_numpy(stream("codec batch", SEED, step=step).random(4)).float()
        drawn = normals("codec noise", SEED, range(4), noise.shape[1:], step=step)
        torch.testing.assert_close(noise, (strength.view(-1, 1, 1, 1, 1) * drawn)[2 * part : 2 * part + 2])
    frames, _ = Shapes(params.world).clips(
        seed=SEED, first=FIRST_CLIP["held-out"], count=codec.HELD_OUT_CLIPS, frames=params.video.frames
    )
    video, coder = to_video(frames), PatchCodec.load(Paths(tmp_path, SEED).codec)
    assert_averaged(coder, *networks["codec"])
    with torch.no_grad():
        error = (coder.decode(coder.encode(video)).clamp(-1, 1) - video).square().mean()
    figures = json.loads((tmp_path / "metrics" / f"seed-{SEED}" / "codec.json").read_text())
    assert figures == {"psnr": pytest.approx(20 * math.log10(2 / math.sqrt(error)), rel=1e-4)}  # the range is 2


def test_the_init_checkpoints_its_layers_if_the_runtime_says_so(
    parents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = record_networks(job, monkeypatch)
    for checkpointing in (True, False):
        workspace = Path(shutil.copytree(parents, tmp_path / str(checkpointing)))
        shutil.rmtree(Paths(workspace, SEED).init)
        params = merged(params_of({"checkpointing": checkpointing}), {"init": {"training": {"steps": 1}}})
        run("init", params, workspace)
        _, student = networks["student"]
        assert student.checkpointing == checkpointing


@pytest.mark.parametrize("name", ["teacher", "init"])
def test_losses_are_means_over_the_batch_whatever_the_micro_batches(name: str, parents: Path, tmp_path: Path) -> None:
    first = []
    for micro_batch in (None, 1):
        workspace = Path(shutil.copytree(parents, tmp_path / str(micro_batch)))
        shutil.rmtree(Paths(workspace, SEED).root / name)
        training = {"training": TRAINING | {"steps": 1, "micro_batch": micro_batch}}
        (row,) = csv.DictReader(io.StringIO(run(name, merged(params_of(), {name: training}), workspace).decode()))
        first.append(float(row["loss"]))
    assert first[0] == pytest.approx(first[1], rel=1e-3)


def test_a_student_with_sinks_is_validated_in_both_modes(parents: Path, tmp_path: Path) -> None:
    """Attention over all frames at once has no sinks, and needs none."""
    workspace = Path(shutil.copytree(parents, tmp_path / "work"))
    settings = {"every": UPDATES, "prompts": 1, "frames": 6, "metric": "residual", "bidirectional": True}
    params = merged(params_of(validation=settings), {"video": {"sink_blocks": 1}})
    pairs.run(params, workspace, SEED)
    run("distill/hiar", params, workspace)
    (found,) = read_validations(Paths(workspace, SEED).distilled("hiar"))
    assert {"residual", BOTH_WAYS + "residual"} <= found.metrics.keys()


@pytest.mark.parametrize("name", ["codec", "teacher", "init", "distill/hiar"])
def test_states_are_kept_as_the_parameters_say_and_resumed(name: str, parents: Path, tmp_path: Path) -> None:
    one, other = (Path(shutil.copytree(parents, tmp_path / place)) for place in ("undisturbed", "interrupted"))
    for workspace in (one, other):
        shutil.rmtree(Paths(workspace, SEED).root / name, ignore_errors=True)
    undisturbed = run(name, params_of(), one)
    often = params_of({"checkpoint_minutes": 1e-9, "checkpoints_kept": 2, "checkpoint_milestone": 2})
    interrupt(lambda: run(name, often, other), step=UPDATES - 1)
    (folder,) = other.rglob(".training")
    # The state just written, the two before it (the newest until then), and the multiple of two.
    assert [path.name for path in states(folder)] == [f"state-{step:08d}" for step in (5, 4, 3, 2)]
    assert run(name, often, other) == undisturbed
