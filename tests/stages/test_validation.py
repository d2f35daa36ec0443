"""Validation while students train: it changes no weight, survives kills, and keeps the best."""

import json
import math
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from commands import copy_artifacts, hiar
from sampled import small_params

from hiar.errors import UserError
from hiar.io.artifacts import read_manifest
from hiar.io.process_group import ALONE
from hiar.io.reading import read_head, read_parts
from hiar.judges.interface import open_judge
from hiar.models.attention import Bidirectional
from hiar.models.generator import load_generator
from hiar.noise import normals
from hiar.parameters import load_params, parse_params
from hiar.schedule import step_sigmas
from hiar.stages import distill, init, validation
from hiar.stages.common import sample_world
from hiar.stages.sample import sample_latents
from hiar.stages.videos import decoded
from hiar.statistics.validations import BOTH_WAYS, read_validations
from hiar.training.checkpoint import Saving
from hiar.worlds.interface import FIRST_CLIP

TRANSFORMER = Path("transformer", "diffusion_pytorch_model.safetensors")
MADE = Path("artifacts", "seed-0")
VARIANT = "self-forcing"  # its walk is not the default of a student without one
SETTINGS = {"every": 4, "prompts": 3, "frames": 6, "metric": "residual", "bidirectional": True}


def with_validation(params, stage="distill", **changes):
    tree = params.model_dump(mode="json")
    tree[stage]["validation"] = SETTINGS | changes
    return type(params).model_validate(tree)


@pytest.fixture(scope="module")
def parents(smoke, tmp_path_factory):
    """The smoke experiment's params, and a workspace with its teacher, pairs and init."""
    workspace = tmp_path_factory.mktemp("validated")
    for name in ("teacher", "pairs", "init"):
        copy_artifacts(smoke / MADE / name, workspace / MADE / name)
    return load_params(smoke / "params.yaml"), workspace


@pytest.fixture(scope="module")
def validated(parents):
    """A student distilled with validation, undisturbed."""
    params, workspace = parents
    whole = Path(shutil.copytree(workspace, workspace.with_name("whole")))
    distill.run(with_validation(params), whole, 0, VARIANT)
    return whole / MADE / "distill" / VARIANT


def test_validation_changes_no_weight_and_no_figure(smoke, validated):
    without = smoke / MADE / "distill" / VARIANT
    assert (validated / TRANSFORMER).read_bytes() == (without / TRANSFORMER).read_bytes()
    for name in (f"metrics/seed-0/distill/{VARIANT}.json", f"curves/seed-0/distill/{VARIANT}.csv"):
        assert (validated.parents[3] / name).read_bytes() == (smoke / name).read_bytes()


def test_every_fourth_update_and_the_last_are_measured_in_both_modes(validated):
    taken = read_validations(validated)
    assert [one.step for one in taken] == [4, 6]
    assert taken[0].metrics.keys() == taken[1].metrics.keys() > {"good", BOTH_WAYS + "good", "saturation_segment_1"}
    assert taken[0].metrics["residual"] != taken[1].metrics["residual"]
    assert taken[0].metrics["residual"] != taken[0].metrics[BOTH_WAYS + "residual"]


def test_better_depends_on_the_metric_and_ties_keep_the_first():
    def better(metric, one, other):
        return validation._goodness(one, metric) > validation._goodness(other, metric)

    assert better("good", {"good": 0.5}, {"good": 0.4})
    assert better("residual", {"residual": 0.4}, {"residual": 0.5})
    for metric in ("good", "residual"):
        assert better(metric, {metric: 0.5}, {})
        assert not better(metric, {metric: 0.5}, {metric: 0.5})  # of equal ones, the first is kept


def test_the_best_is_a_checkpoint_of_its_own(validated, smoke):
    """Lower residuals are better; its manifest has the update and the value."""
    taken = read_validations(validated)
    best = min(taken, key=lambda one: one.metrics["residual"])
    kept = read_manifest(validated / validation.BEST, "checkpoint")
    assert (kept["updates"], kept["metric"], kept["value"]) == (best.step, "residual", best.metrics["residual"])
    whole = read_manifest(validated, "checkpoint")
    assert "validation/scores.jsonl" in whole["files"]
    for name in ("parents", "settings", "stage", "seed", "variant"):
        assert kept[name] == whole[name]
    student = load_generator(validated / validation.BEST)
    assert student.card.walk.context == "finished"
    last = (validated / TRANSFORMER).read_bytes()
    assert ((validated / validation.BEST / TRANSFORMER).read_bytes() == last) == (best is taken[-1])


def test_a_mean_is_of_the_videos_that_have_the_metric():
    job = SimpleNamespace(work=SimpleNamespace(ranks=ALONE))
    nan = math.nan
    values = {"some": torch.tensor([1.0, nan, 4.0]), "none": torch.tensor([nan] * 3), "all": torch.tensor([1.0, 2, 6])}
    assert validation._means(job, values) == {"some": 2.5, "all": 3.0}


def residual_of(params, student, latents, prompts):
    """The mean of the videos' residuals, measured by the oracle."""
    judge = open_judge(params.world, params.score, *student.block_pictures)
    residuals = []
    for latent, prompt in zip(latents, prompts, strict=True):
        frames = torch.cat(list(decoded(student, latent)))
        residuals.append(judge.measure(judge.look(frames[None], None, [prompt]))["residual"].item())
    return sum(residuals) / len(residuals)


def test_the_last_figures_are_those_of_the_students_own_videos(validated, parents):
    """With validation's own numbers for prompts and noise, the averaged weights, and every frame of every video."""
    params, _ = parents
    student, first = load_generator(validated), FIRST_CLIP["validation"]
    prompts = sample_world(params).prompts(seed=0, first=first, count=3)
    latents = sample_latents(student, prompts, 6, student.card.walk, 0, range(first, first + 3))
    found = residual_of(params, student, latents, prompts)
    assert read_validations(validated)[-1].metrics["residual"] == pytest.approx(found, rel=1e-5)


def test_another_seed_has_prompts_and_noise_of_its_own(validated, parents):
    params, _ = parents
    student, first = load_generator(validated), FIRST_CLIP["validation"]
    alone = SimpleNamespace(autocast=nullcontext)
    work = SimpleNamespace(params=params, ranks=ALONE, facts={"seed": 7}, accelerator=alone)
    judge = open_judge(params.world, params.score, *student.block_pictures)
    settings = with_validation(params).distill.validation
    measured = validation._measure(validation._Job(work, settings, student, None, judge, 6), student, 6)["residual"]
    prompts = sample_world(params).prompts(seed=7, first=first, count=3)
    latents = sample_latents(student, prompts, 6, student.card.walk, 7, range(first, first + 3))
    assert measured.mean().item() == pytest.approx(residual_of(params, student, latents, prompts), rel=1e-5)


@torch.no_grad()
def test_bidirectional_is_all_frames_of_a_clip_at_once(validated, parents):
    """The student's steps written out, under attention without a mask and without any context."""
    params, _ = parents
    student, first, schedule = load_generator(validated), FIRST_CLIP["validation"], params.schedule
    prompts = sample_world(params).prompts(seed=0, first=first, count=3)
    channels, _, height, width = student.block_shape
    shape, text = (channels, params.video.frames, height, width), student.embed(prompts)
    sigmas = step_sigmas(schedule.student_steps, schedule.student_shift)
    for step in range(schedule.student_steps):
        noise = normals("rollout", 0, range(first, first + 3), shape, step=step)
        x = noise if step == 0 else (1 - sigmas[step]) * x0 + sigmas[step] * noise  # noqa: F821
        x0 = student.denoiser(x, sigmas[step].expand(3), text, Bidirectional())
    found = residual_of(params, student, x0, prompts)
    assert read_validations(validated)[-1].metrics[BOTH_WAYS + "residual"] == pytest.approx(found, rel=1e-5)


def test_a_training_that_was_killed_twice_goes_on_to_the_same_validations(parents, validated, tmp_path):
    params, workspace = parents
    work = Path(shutil.copytree(workspace, tmp_path / "work"))
    runtime = {"checkpoint_minutes": 1e-9}
    often = params.model_copy(update={"runtime": params.runtime.model_copy(update=runtime)})

    def interrupted(at):
        def press(saving, step, curve):
            if step == at:  # after its validation, before its state
                signal.raise_signal(signal.SIGINT)
            begin(saving, step, curve)

        begin = Saving.begin
        return press

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for at in (4, 5):
            if at == 5:  # as if the first kill had hit while the best was written
                left = next(work.rglob(".training")) / validation.BEST
                left.mkdir()
                (left / "of before").touch()
            with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Saving, "begin", interrupted(at))
                distill.run(with_validation(often), work, 0, VARIANT)
            assert not list(work.rglob("*.mp4"))
    finally:
        signal.signal(signal.SIGINT, before)
    distill.run(with_validation(often), work, 0, VARIANT)
    again = work / MADE / "distill" / VARIANT
    for name in (TRANSFORMER, "validation/scores.jsonl", Path("best") / TRANSFORMER):
        assert (again / name).read_bytes() == (validated / name).read_bytes()
    assert {path.name for path in again.rglob("*")} == {path.name for path in validated.rglob("*")}


def test_an_init_is_validated_with_the_default_walk(parents, tmp_path):
    params, workspace = parents
    work = Path(shutil.copytree(workspace, tmp_path / "work", ignore=shutil.ignore_patterns("init")))
    init.run(with_validation(params, "init", every=10, bidirectional=False), work, 0)
    [only] = read_validations(work / MADE / "init")
    assert only.step == 10
    assert not [name for name in only.metrics if name.startswith(BOTH_WAYS)]
    assert (work / MADE / "init" / TRANSFORMER).read_bytes() == (workspace / MADE / "init" / TRANSFORMER).read_bytes()
    assert (work / MADE / "init" / "best" / TRANSFORMER).read_bytes() == (
        workspace / MADE / "init" / TRANSFORMER
    ).read_bytes()


def test_of_an_init_with_two_trainings_only_the_students_is_validated(parents, tmp_path):
    """Its causal teacher is not validated; saving the best in between does not change the training."""
    params, workspace = parents
    weights = []
    for watch in (None, SETTINGS | {"every": 3, "bidirectional": False, "metric": "good"}):
        work = Path(shutil.copytree(workspace, tmp_path / str(len(weights)), ignore=shutil.ignore_patterns("init")))
        tree = params.model_dump(mode="json")
        training = tree["init"]["training"] | {"steps": 5}
        tree["init"] = {
            "kind": "consistency",
            "teacher": {"training": training | {"steps": 4}, "sigma_floor": 0.5},
            "training": training,
            "solver_steps": 8,
            "guidance": 2.0,
            "validation": watch,
        }
        init.run(parse_params(tree, Path("params.yaml")), work, 0)
        weights.append((work / MADE / "init" / TRANSFORMER).read_bytes())
    assert weights[0] == weights[1]
    first, last = read_validations(work / MADE / "init")
    assert (first.step, last.step) == (3, 5)
    assert first.metrics["good"] == last.metrics["good"]  # after so little training they do not differ
    assert read_manifest(work / MADE / "init" / validation.BEST, "checkpoint")["updates"] == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"metric": "goods"},
            r"params\.yaml: distill\.validation\.metric = 'goods': is not a metric of the oracle.*did you mean 'good'",
        ),
        ({"metric": "dynamic"}, r"validation\.metric = 'dynamic': is not a metric"),
    ],
)
def test_a_metric_that_cannot_tell_the_best_is_refused_before_training(parents, tmp_path, changes, said):
    params, workspace = parents
    work = Path(shutil.copytree(workspace, tmp_path / "work"))
    with pytest.raises(UserError, match=said):
        distill.run(with_validation(params, **changes), work, 0, "hiar")
    assert not [*(work / MADE / "distill").rglob("*.safetensors")]


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ("distill", {"frames": 7}, r"distill\.validation\.frames = 7: must be a multiple of video\.block = 3"),
        ("init", {"frames": 3}, r"init\.validation\.frames = 3: scoring needs at least 5 frames"),
        ("init", {"every": 0}, r"init\.validation\.every = 0: input should be greater than or equal to 1"),
        (
            "init",
            {"prompts": 3},
            r"runtime\.processes = 2: .*cannot evenly split the batch of init\.validation, its prompts: 3",
        ),
        ("distill", {"metrics": "good"}, r"distill\.validation\.metrics = 'good': unknown parameter; did you mean"),
    ],
)
def test_invalid_settings_of_validation_are_refused(stage, changes, said):
    tree = small_params().model_dump(mode="json")
    tree[stage]["validation"] = SETTINGS | {"prompts": 2} | changes
    tree["runtime"]["processes"] = 2
    with pytest.raises(UserError, match=said):
        parse_params(tree, Path("params.yaml"))


def test_curves_and_videos_are_recorded(parents, tmp_path, monkeypatch):
    """In the spool for MLflow: the means at each validation, and its first videos."""
    params, workspace = parents
    work = Path(shutil.copytree(workspace, tmp_path / "work"))
    monkeypatch.delenv("HIAR_TRACKING")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("hiar.tracking.stage.start_sender", lambda folder: None)  # the spool read below is not sent
    distill.run(with_validation(params), work, 0, "hiar")
    (spool,) = (work / ".hiar" / "spool" / "local").glob("*.jsonl")
    events = [json.loads(line) for line in spool.read_text().splitlines()]
    taken = {one.step: one.metrics for one in read_validations(work / MADE / "distill" / "hiar")}
    sent = {
        one["step"]: one["metrics"] for one in events if any("validation/" in name for name in one.get("metrics", ()))
    }
    assert sent.keys() == taken.keys()
    for step, metrics in sent.items():
        assert metrics["validation/good"] == taken[step]["good"]
        assert metrics["validation/bidirectional/residual"] == taken[step]["bidirectional/residual"]
        assert not [name for name in metrics if "segment" in name]
    videos = [f"validation-{step:06d}-{number:04d}.mp4" for step in (4, 6) for number in range(params.report.videos)]
    assert [one["artifact"] for one in events if "artifact" in one] == videos
    for name in videos:
        path = spool.with_suffix(".files") / name
        assert sum(len(part) for part in read_parts(path)) == SETTINGS["frames"]
        assert read_head(path).rate == params.world.frames_per_second


@pytest.mark.long
def test_processes_share_the_prompts(parents, tmp_path):
    """Two processes measure what one does, up to rounding of sharded weights, and keep the same best."""
    params, workspace = parents
    found = {}
    for processes in (1, 2):
        work = Path(shutil.copytree(workspace, tmp_path / str(processes)))
        tree = with_validation(params, prompts=4).model_dump(mode="json")
        tree["distill"]["micro_batch"], tree["runtime"]["processes"] = 1, processes
        (work / "params.yaml").write_text(yaml.safe_dump(tree))
        hiar("stage", "distill", "--seed", 0, "--variant", "hiar", folder=work, HIAR_TRACKING="off")
        folder = work / MADE / "distill" / "hiar"
        found[processes] = read_validations(folder), read_manifest(folder / "best", "checkpoint")["updates"]
    (one, best), (two, same) = found.values()
    assert best == same
    for alone, shared in zip(one, two, strict=True):
        assert alone.step == shared.step
        assert shared.metrics == pytest.approx(alone.metrics, rel=1e-3, abs=1e-4)


def test_an_adopted_student_is_not_validated():
    tree = small_params().model_dump(mode="json")
    tree["init"] = {"kind": "adopted", "source": "student.pt", "validation": SETTINGS}
    with pytest.raises(UserError, match=r"init\.validation = .*: an adopted student is not trained; use null"):
        parse_params(tree, Path("params.yaml"))
