"""The released recipes: the values of their configurations, under their names, against those of our experiments."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from commands import hiar

from hiar.config import ForwardKL, Params
from hiar.errors import UserError
from hiar.parameters import merge, parse_params
from hiar.workspace import experiment_params, experiment_tree, experiments_beside, override_of, run_params
from hiar.worlds.interface import FIRST_CLIP

ROOT = Path(__file__).parents[1]
# configs/self_forcing_dmd.yaml, its default_config.yaml, and the README's 600 iterations.
SELF_FORCING: dict[str, Any] = {
    "iterations": 600,
    "lr": 2.0e-6,
    "lr_critic": 4.0e-7,
    "betas": (0.0, 0.999),
    "weight_decay": 0.01,
    "max_grad_norm": 10.0,
    "dfake_gen_update_ratio": 5,
    "total_batch_size": 64,
    "ema_weight": 0.99,
    "ema_start_step": 200,
    "guidance_scale": 3.0,
    "timestep_shift": 5.0,
    "min_step": 20,
    "max_step": 980,
    "denoising_step_list": [1000, 750, 500, 250],
    "num_frame_per_block": 3,
    "num_training_frames": 21,
    "context_noise": 0,
}
# configs/hiar.yaml and the paper's 20k steps.
HIAR = SELF_FORCING | {"iterations": 20_000, "lr_critic": 3.0e-7}
# configs/longlive_train_init.yaml of LongLive's branch v1.0.
LONGLIVE = SELF_FORCING | {"iterations": 700}
RECIPES = {"wan2.1-self-forcing": SELF_FORCING, "wan2.1-hiar": HIAR, "wan2.1-longlive": LONGLIVE}


def params_of(name: str) -> Params:
    return experiment_params(ROOT, name)


@pytest.mark.parametrize("name", RECIPES)
def test_an_experiment_has_every_number_of_its_released_recipe(name: str) -> None:
    """One of their steps is a critic update; every fifth, from the first on, is a generator update too."""
    released, params = RECIPES[name], params_of(name)
    distill, ratio = params.distill, params.distill.critic_updates
    ours = {
        "iterations": distill.steps * ratio,
        "lr": distill.generator.adamw.lr,
        "lr_critic": distill.critic.adamw.lr,
        "betas": distill.generator.adamw.betas,
        "weight_decay": distill.generator.adamw.weight_decay,
        "max_grad_norm": distill.generator.clip,
        "dfake_gen_update_ratio": ratio,
        "total_batch_size": distill.batch,
        "ema_weight": distill.generator.ema,
        # Theirs copies the weights after step 199, and averages from the next generator update on.
        "ema_start_step": (distill.generator.ema_from + 1) * ratio,
        "guidance_scale": distill.guidance - 1,  # cond + scale (cond - uncond)
        "timestep_shift": distill.levels.shift,
        "min_step": 1000 * distill.levels.lowest,
        "max_step": 1000 * distill.levels.highest,
        "denoising_step_list": [1000 - 1000 * j // params.schedule.student_steps for j in range(4)],
        "num_frame_per_block": params.video.block,
        "num_training_frames": params.video.frames,
        "context_noise": params.conventions.context_noise,
    }
    assert ours == released
    critic = distill.critic
    assert (critic.adamw.betas, critic.adamw.weight_decay, critic.clip) == (ours["betas"], 0.01, 10.0)
    assert params.schedule.student_shift == released["timestep_shift"]
    assert (distill.windows, distill.replay, distill.critic_warmup, distill.critic_floor) == (1, None, 0, 0)
    assert distill.critic_batch == distill.batch
    for optimizer in (distill.generator, critic):
        assert (optimizer.muon, optimizer.warmup, optimizer.decay) == (None, 0, "constant")
    assert (distill.real_score, params.runtime.precision) == (Path("models/Wan2.1-T2V-14B-Diffusers"), "bf16")
    assert (params.conventions.given, params.conventions.sinks, params.schedule.renoise) == ("clean", "stay", "sde")
    assert (params.init.kind, params.init.source.name) == ("adopted", "ode_init.pt")  # type: ignore[union-attr]


def test_longlive_has_a_window_of_twelve_frames_with_a_sink_block() -> None:
    """Sinks exist in rollouts alone: losses on whole clips under a mask do not have them."""
    tree = experiment_tree(ROOT, "wan2.1-longlive")
    video = params_of("wan2.1-longlive").video
    assert (video.frames, video.block, video.window, video.sink_blocks) == (21, 3, 12, 1)
    forward_kl = {"weight": 0.1, "steps": 1, "attention": "bidirectional"}
    variant = {"order": "step_first", "context": "output", "level": 1.0, "forward_kl": forward_kl}

    def changed(**changes: Any) -> dict[str, Any]:
        both = {"first": variant, "second": variant | changes}
        return merge(tree, {"variants": both, "compare": {"distill": [*both]}})

    parse_params(changed(), ROOT / "params.yaml")
    forced = {"order": "block_first", "context": "finished", "level": None, "forcing": "diffusion", "forward_kl": None}
    trained = tree | {"init": experiment_tree(ROOT, "wan2.1-1.3b")["init"]}
    for masked in (changed(forward_kl=forward_kl | {"attention": "causal"}), changed(**forced), trained):
        with pytest.raises(UserError, match=r"video\.sink_blocks = 1: training clips must fit in the window of 12"):
            parse_params(masked, ROOT / "params.yaml")


def test_causal_forcing_trains_a_causal_teacher_and_distils_its_consistency_first() -> None:
    """configs/{ar_diffusion_tf,causal_cd,causal_forcing_dmd}_chunkwise.yaml, its README's fewest steps, 64 GPUs."""
    params, other = params_of("wan2.1-causal-forcing"), params_of("wan2.1-self-forcing")
    assert params.distill == other.distill
    init = params.init
    assert [*init.trainings] == ["teacher.training", "training"]  # in the order in which they run
    assert (init.kind, init.solver_steps, init.guidance) == ("consistency", 48, 3.0)  # type: ignore[union-attr]
    first, second = init.trainings["teacher.training"], init.trainings["training"]
    assert [one.steps for one in (first, second)] == [2000, 3000]
    for training in (first, second):
        optimizer = training.optimizer
        adamw = (optimizer.adamw.lr, optimizer.adamw.betas, optimizer.adamw.weight_decay)
        assert (training.batch, adamw, optimizer.clip) == (64, (2.0e-6, (0.0, 0.999), 0.01), 10.0)
        assert (optimizer.muon, optimizer.warmup, optimizer.decay) == (None, 0, "constant")
    assert (first.optimizer.ema, second.optimizer.ema) == (None, 0.99)
    lowest = 5 * 0.001 / (1 + 4 * 0.001)  # of its 1000 levels of shift 5: all have the velocity's own weight
    assert init.teacher.weighting == "bell" and init.teacher.sigma_floor < lowest  # type: ignore[union-attr]
    assert (params.schedule.teacher_shift, params.teacher.caption_dropout) == (5.0, 0.0)


def test_hiar_has_the_released_regulariser() -> None:
    params = params_of("wan2.1-hiar")
    assert params.compare.distill == ["hiar"]
    assert params.variant("hiar").forward_kl == ForwardKL(weight=0.1, steps=1, attention="causal")
    pairs = params.pairs
    assert (pairs.count, pairs.solver_steps, pairs.guidance, params.schedule.teacher_shift) == (16_000, 48, 6.0, 8.0)
    assert params_of("wan2.1-self-forcing").compare.distill == ["self-forcing"]


def test_the_init_has_the_regression_of_other_projects() -> None:
    """Squared error of x0 over blocks that are not clean, no weight average, betas of 0.9 and 0.999.

    No level is above 1, so with a floor of 1 all levels have the same weight.
    """
    params = params_of("wan2.1-1.3b")
    training = params.init.trainings["training"]
    adamw = training.optimizer.adamw
    assert (params.init.kind, params.init.sigma_floor) == ("ode", 1.0)  # type: ignore[union-attr]
    assert (adamw.lr, adamw.betas, adamw.weight_decay) == (2.0e-6, (0.9, 0.999), 0.01)
    assert (training.optimizer.ema, training.optimizer.clip) == (None, 10.0)


def test_the_built_in_worlds_recipe_has_the_same_meaning() -> None:
    """Its distillation is that of HiAR except for the real score, which is its own teacher, and the micro-batch."""
    own, released = params_of("paper-distill").distill, params_of("wan2.1-hiar").distill
    differing = {field for field, value in own if value != getattr(released, field)}
    assert differing == {"real_score", "micro_batch"}


def test_no_recipe_takes_more_samples_than_a_purpose_has() -> None:
    """Otherwise it would train on samples that are held out or sampled for another purpose."""
    firsts = sorted(FIRST_CLIP.values())
    room = min(later - first for first, later in pairwise(firsts))
    for path in (ROOT / "experiments").glob("*.yaml"):
        params = params_of(path.stem)
        trained = [one.training for one in (params.codec, params.teacher) if one and one.training]
        counts = [training.steps * training.batch for training in trained]
        counts += [params.pairs.count, params.sample.videos, params.distill.critic_rollouts]
        counts += [params.distill.all_steps * params.distill.batch]
        assert max(counts) <= room, path


def project(tmp_path: Path, **files: str) -> Path:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for name, text in files.items():
        (tmp_path / "experiments" / f"{name}.yaml").write_text(text)
    return tmp_path


def test_an_experiment_may_be_laid_over_another(tmp_path: Path) -> None:
    files = {"low": "seeds: [1, 2]\nsample: {videos: 8, frames: 30}\nreport: {videos: 2}\n", "mid": "over: low\n"}
    root = project(tmp_path, **files, high="over: mid\nsample: {videos: 9}\n", other="sample: {videos: 7}\n")
    params = experiment_params(root, "high")
    assert (params.seeds, params.sample.videos, params.sample.frames) == ([1, 2], 9, 30)
    assert experiment_params(root, "other+high").sample.videos == 9
    assert experiment_params(root, "high+other").sample.videos == 7


def test_an_error_in_joined_experiments_names_the_last_one(tmp_path: Path) -> None:
    """Whose overrides lie over the others'."""
    root = project(tmp_path, few="sample: {videos: 8}\nreport: {videos: 2}\n", odd="sample: {frames: 91}\n")
    for read in (experiment_params, run_params):
        assert read(root, "few").sample.videos == 8
        with pytest.raises(UserError, match=r"experiments/odd\.yaml: sample\.frames = 91: must be a multiple"):
            read(root, "few+odd")


def test_files_are_utf8_and_what_is_merged_stays_as_it_was(tmp_path: Path) -> None:
    root = project(tmp_path, odd="sample: {prompts: schöne.txt}\n")
    assert experiment_tree(root, "odd")["sample"]["prompts"] == "schöne.txt"
    (root / "experiments" / "odd.yaml").write_bytes("sample: {prompts: schöne.txt}\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"odd\.yaml: is not UTF-8 text; save it as UTF-8"):
        experiment_tree(root, "odd")
    base = {"a": {"b": 1, "c": [2]}}
    assert merge(base, {"a": {"b": 3}, "d": 4}) == {"a": {"b": 3, "c": [2]}, "d": 4}
    assert base == {"a": {"b": 1, "c": [2]}}


def test_broken_references_between_experiments_are_named(tmp_path: Path) -> None:
    root = project(tmp_path, one="over: two\n", two="over: one\n", three="over: [one]\n", four="over: fiv\n", five="")
    with pytest.raises(UserError, match=r"experiment 'one': there is no .*; run from the project's folder"):
        override_of(root / "nowhere", "one")
    for name, line in {
        "one": r"two\.yaml: over = 'one': leads back here; leave it out",
        "three": r"three\.yaml: over = \['one'\]: should be the name of one file",
        "four": r"experiment 'fiv': there is no .*fiv\.yaml; did you mean 'five'",
    }.items():
        with pytest.raises(UserError, match=line):
            experiment_params(root, name)


def test_experiments_run_beside_another_are_laid_over_it(tmp_path: Path) -> None:
    root = project(tmp_path, base="beside: [one, two]\nseeds: [3]\n", one="sample: {videos: 9}\n", two="{}\n")
    assert experiments_beside(root, "base") == ["base+one", "base+two"]
    assert experiments_beside(root, "two+base") == ["two+base+one", "two+base+two"]
    assert experiments_beside(root, "base+one") == []  # already one of the experiments beside
    assert experiments_beside(root, "one") == experiments_beside(root, None) == []
    assert experiment_params(root, "base+one").sample.videos == 9
    for listed, line in {"one": r"beside = 'one': should be a list", "[om]": r"experiment 'om': there is no "}.items():
        (root / "experiments" / "base.yaml").write_text(f"beside: {listed}\n")
        with pytest.raises(UserError, match=line):
            experiments_beside(root, "base")


def test_the_experiments_of_inits_differ_only_in_the_init() -> None:
    """The experiments differ in the init alone."""
    names = ["inits", *experiments_beside(ROOT, "inits")]
    compared = [params_of(name) for name in names]
    assert [one.init.kind for one in compared] == ["ode", "ode", "teacher_forcing", "causal_ode", "consistency"]
    updates = [sum(one.steps for one in params.init.trainings.values()) for params in compared]
    assert updates == [60, 360, 300, 360, 360]
    assert len({one.model_copy(update={"init": compared[0].init}).model_dump_json() for one in compared}) == 1
    assert len(compared[0].seeds) >= 3


@pytest.mark.long
def test_plan_reports_the_needs_of_a_released_recipe() -> None:
    # An update takes 64 prompts for the student and 320 for its critic: how often 4096 of each are embedded.
    for name, often in {"wan2.1-hiar": 63 + 313, "wan2.1-self-forcing": 2 + 10}.items():
        plan = hiar("plan", name, "--gpus", "8", "--stage", "init", folder=ROOT).stdout
        assert "832x480" in plan
        assert f"4096 of distill's at a time: {often} times at most\n" in plan
        assert "\ninit" not in plan.split("disk")[0]  # the init is adopted
