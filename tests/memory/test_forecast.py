"""Plans equal measurements: weights, gradients, states and rings to the byte, activations of whole steps to 1 %."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from commands import hiar
from torch import nn

from hiar.config import AdamW, CausalOde, Muon, Optimizer
from hiar.grid import fastest
from hiar.memory import forecast, inits, networks, steps
from hiar.memory.counting import Counting, imagined, network_bytes, storage_bytes
from hiar.memory.disk import disk
from hiar.memory.steps import Config, Sizes, imagine, make_network
from hiar.memory.table import advice, dearest
from hiar.models.rings import RecordedRings
from hiar.models.rotary import forget
from hiar.noise import normals
from hiar.parameters import load_params, merge, parse_params, read_yaml
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import walk
from hiar.schedule import step_sigmas
from hiar.training.diffusion_forcing import Pairs
from hiar.training.distillation import Distillation, distillation_step
from hiar.training.role import make_role, update
from hiar.training.self_rollout import SelfRollout
from hiar.workspace import experiment_params
from hiar.worlds.interface import CODEC, Codec
from hiar.worlds.shapes.codec import PatchCodec
from hiar.worlds.wan.tiny import make_tiny_wan

ROOT = Path(__file__).parents[2]
ADAM = Optimizer(
    adamw=AdamW(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.1),
    muon=None,
    warmup=0,
    decay="constant",
    clip=1.0,
    ema=None,
    ema_from=0,
)
MUON = ADAM.model_copy(update={"muon": Muon(lr=1e-3, weight_decay=0.0), "ema": 0.9})
# Few passes, with a few more tokens than the default experiment's one per frame.
SMALL: dict[str, Any] = {
    "video": {"frames": 9, "window": 9},
    "schedule": {"student_steps": 2},
    "model": {"patch": 4},
    "distill": {"windows": 1},
}
CAUSVID = {"order": "block_first", "context": "finished", "level": None, "forward_kl": None, "forcing": "diffusion"}
# Overrides of the default experiment, a variant, samples at a time, and changes of the default network.
CASES: dict[str, tuple[dict[str, Any], str, int, Config]] = {
    "HiAR with a regulariser": ({}, "hiar", 2, {}),
    "a window that slides, bf16, checkpointed": (
        {
            "video": {"window": 6},
            "runtime": {"precision": "bf16", "checkpointing": True},
            "distill": {"windows": 2, "replay": None, "critic_batch": 4},
        },
        "hiar-no-fkl",
        2,
        {"ffn_dim": 256, "num_layers": 3},
    ),
    "shared context, checkpointed": ({"runtime": {"checkpointing": True}}, "shared", 1, {}),
    "Self-Forcing in bf16": ({"runtime": {"precision": "bf16"}}, "self-forcing", 1, {}),
    "CausVid": ({"variants": {"causvid": CAUSVID}}, "causvid", 2, {}),
}
QUICK = "Self-Forcing in bf16"  # the others take longer to plan


def case(name: str) -> tuple[Sizes, Any, Config]:
    overrides, variant, batch, shape = CASES[name]
    params = parse_params(merge(merge(read_yaml(ROOT / "params.yaml"), SMALL), overrides), Path(name))
    models = networks.open_models(params)
    sizes = Sizes(params, models.sizes.latent, models.sizes.words, batch)
    return sizes, params.variant(variant), models.student | shape


def measured_peaks(sizes: Sizes, variant: Any, config: Config) -> dict[str, int]:
    """Peak bytes of the same phases, measured on real tensors and whole networks."""
    student, critic, real = (make_network(sizes.params, config, None, trained) for trained in (True, True, False))
    forget()  # so that both runs compute positions
    count = Counting()
    steps.distill(count, sizes, variant, student, critic, real)
    return count.peaks


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name not in QUICK)) for name in CASES])
def test_planned_activations_equal_measured_ones(name: str) -> None:
    """To 1 %: plans extrapolate from two and three layers, and tensors are freed in slightly different orders."""
    sizes, variant, config = case(name)
    distill = partial(imagine, lambda count, *n: steps.distill(count, sizes, variant, *n), sizes)
    planned = distill([config, config], [config])
    assert planned == pytest.approx(measured_peaks(sizes, variant, config), rel=0.01)


@pytest.mark.parametrize("settings", [ADAM, MUON, ADAM.model_copy(update={"ema": 0.5})])
def test_planned_bytes_of_a_role_equal_measured_ones(settings: Optimizer) -> None:
    sizes, _, config = case("HiAR with a regulariser")
    with torch.device("meta"):
        planned = networks.role_bytes(make_role(make_network(sizes.params, config, trained=True), settings, 1))
    role = make_role(make_network(sizes.params, config, trained=True), settings, 1)
    held = {
        "gradients": storage_bytes([p.grad for p in role.module.parameters()]),
        "parameters": network_bytes(role.module),
    }
    update(role, 0, Accelerator(cpu=True))
    held["optimiser"] = storage_bytes([dict(one.state) for one in role.optimizers])
    held["average"] = 0 if role.average is None else network_bytes(role.average)
    assert planned == held


@pytest.mark.parametrize("kind", inits.KINDS)
def test_planned_activations_of_an_init_equal_measured_ones(kind: str) -> None:
    sizes, _, config = case(QUICK)
    update, frozen = inits.KINDS[kind]
    planned = imagine(lambda count, *n: update(count, sizes, *n), sizes, [config], [config] * frozen)
    made = [make_network(sizes.params, config, None, trained) for trained in (True, False)[: 1 + frozen]]
    forget()
    count = Counting()
    update(count, sizes, *made)
    assert planned == pytest.approx(count.peaks, rel=0.01)


def test_checkpointed_layers_keep_fewer_activations() -> None:
    sizes, _, config = case(QUICK)
    most = []
    for checkpointing in (False, True):
        runtime = sizes.params.runtime.model_copy(update={"checkpointing": checkpointing})
        changed = replace(sizes, params=sizes.params.model_copy(update={"runtime": runtime}))
        with imagined():
            count = Counting()
            inits.KINDS["ode"].update(count, changed, make_network(changed.params, config, 3, trained=True))
        most.append(max(count.peaks.values()))
    assert most[0] > 1.5 * most[1]


def test_frozen_networks_are_in_bf16_and_need_no_gradients() -> None:
    sizes, _, config = case(QUICK)
    with torch.device("meta"):
        serving = make_network(sizes.params, config, 1)
    assert serving.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in serving.parameters())


def test_causal_ode_is_planned_by_its_teachers_larger_update() -> None:
    """The teacher sees clean and noisy blocks together and so needs more than the regression after it."""
    sizes, _, config = case(QUICK)
    most = {}
    for kind in ("ode", "causal_ode"):
        update = inits.KINDS[kind].update
        most[kind] = max(imagine(lambda count, *n, of=update: of(count, sizes, *n), sizes, [config], []).values())
    assert most["causal_ode"] > most["ode"]


def test_tensors_alive_at_the_start_of_a_phase_count_towards_its_peak() -> None:
    count, weights = Counting(), torch.ones(500)
    with count:
        before = torch.zeros(1000)
        with count.phase("first"):
            del before
            after = weights[:10] + 1
        with count.phase("second"):
            after = after + 1
    assert count.peaks == {"first": 4000, "second": 80}  # without weights, which existed before


def test_shared_storage_is_counted_once() -> None:
    tied, other = nn.Linear(8, 4), torch.zeros(2, 3)
    assert storage_bytes({"a": [other, other.T], "b": (other[:1], None, 5)}) == 24
    assert network_bytes(tied) == network_bytes(nn.ModuleList([tied, tied])) == network_bytes(tied, tied) == 4 * 36


def test_planned_disk_use_equals_the_files_written(smoke: Path) -> None:
    """Except headers, manifests and videos."""
    models = networks.open_models(load_params(smoke / "params.yaml"))
    planned, made = disk(models), smoke / "artifacts" / "seed-0"

    def held(folder: str) -> int:
        return sum(path.stat().st_size for path in (made / folder).rglob("*.safetensors"))

    shared = held("teacher/codec") + held("teacher/text_encoder")  # in each checkpoint of a world that trains its own
    students = len(list((made / "distill").iterdir()))
    found = {
        "codec": held("codec"),
        "teacher": held("teacher"),
        "pairs": held("pairs"),
        "init": held("init") - shared,
        "distill": held("distill") - students * shared,
        "samples": held("samples"),
    }
    states = planned.pop("states of a training")
    assert planned.pop("trajectories of an init") == 0
    assert planned == pytest.approx(found, rel=0.02, abs=4000)
    params, distill = models.sizes.params, models.sizes.params.distill
    roles = [networks.role_bytes(networks.meta_role(models, one)) for one in (distill.generator, distill.critic)]
    state = sum(one["parameters"] + one["optimiser"] + one["average"] for one in roles)
    assert states == 2 * state  # the newest, and the next one until it is complete
    more = params.runtime.model_copy(update={"checkpoints_kept": 3, "checkpoint_milestone": distill.all_steps - 1})
    changed = replace(models, sizes=replace(models.sizes, params=params.model_copy(update={"runtime": more})))
    assert disk(changed)["states of a training"] == (3 + 1 + 1) * state


def test_a_causal_teachers_trajectories_take_as_much_disk_each_as_pairs() -> None:
    params = experiment_params(ROOT, "inits+init-causal-ode")
    assert isinstance(params.init, CausalOde) and params.init.pairs is not None
    planned = disk(networks.open_models(params))
    assert planned["trajectories of an init"] * params.pairs.count == planned["pairs"] * params.init.pairs.count > 0


def test_imported_pairs_take_as_much_disk_as_their_shards_which_may_be_in_another_type(tmp_path: Path) -> None:
    models = networks.open_models(experiment_params(ROOT, "inits"))

    def planned(**changes: object) -> int:
        pairs = models.sizes.params.pairs.model_copy(update=changes)
        params = models.sizes.params.model_copy(update={"pairs": pairs})
        return disk(replace(models, sizes=replace(models.sizes, params=params)))["pairs"]

    made = planned()
    assert planned(source=tmp_path) == made > 0  # it is on the GPU machine only
    for number in range(2):
        (tmp_path / f"{number}.safetensors").write_bytes(bytes(500 + number))
    assert planned(source=tmp_path) == 1001
    assert planned(stored=False) == 0
    assert planned(kept_in="bf16") == planned(kept_in="fp16") == made / 2


@pytest.mark.parametrize("name", [name for name in CASES if name != "CausVid"])  # it has no rollout
def test_planned_rings_equal_measured_ones(name: str) -> None:
    sizes, variant, config = case(name)
    params = sizes.params
    grid = steps.training_grid(params, variant, params.schedule.student_steps)
    sigmas = step_sigmas(params.schedule.student_steps, params.schedule.student_shift)
    text, samples = sizes.text(config, sizes.batch), range(sizes.batch)
    rollout = Rollout(grid, sigmas, sizes.block_shape, "sde", 0, samples, text, {}, params.conventions)
    most = 0
    with sizes.autocast():
        student = make_network(params, config, trained=True)
        for _ in walk(student, rollout, variant.order, grad_step=params.schedule.student_steps - 1):
            rings = [one for one in gc.get_objects() if type(one) is RecordedRings]
            most = max(most, *(storage_bytes(one._slots) for one in rings))
    assert most == forecast.training_rings(sizes, config, variant)


def planned_entries(params: Any, stage: str, gpus: int = 1, batch: int = 1) -> dict[tuple[str, str], int]:
    """Planned bytes of a stage by (role, what); activations of the fullest phase are named "phase"."""
    found = forecast.forecast(networks.open_models(params), stage, params.variant("self-forcing"), batch, gpus)
    rows = {
        (e.role, e.what if e.role != "activations" or e.what == "decoding" else "phase"): e.bytes for e in found.entries
    }
    assert found.total == sum(rows.values())  # no two entries share a key
    return rows


def test_a_stage_holds_its_networks_its_rings_and_its_fullest_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed by hand: each of three GPUs has a third, rounded up, of what is sharded, and all of what is not."""
    sizes, variant, config = case(QUICK)
    params = sizes.params
    whole, half = (network_bytes(networks.make_meta(params, config, half)) for half in (False, True))
    assert whole > 1.9 * half  # little is kept in fp32
    network = make_network(params, config, trained=True)
    learned, gradients = network_bytes(network), storage_bytes(list(network.parameters()))
    distill = planned_entries(params, "distill", gpus=3)
    for role in ("student", "critic"):
        assert distill[role, "parameters"] == -(-learned // 3)
        assert distill[role, "gradients"] == -(-gradients // 3)
    # The teacher also embeds prompts and stays in fp32; a real score that does not is in bf16.
    assert distill["real score", "parameters"] == -(-whole // 3)
    peaks = imagine(lambda count, *n: steps.distill(count, sizes, variant, *n), sizes, [config, config], [config])
    assert distill["rings", "keys and values"] + distill["activations", "phase"] == max(peaks.values())
    first = network.transformer.blocks[0]
    layer = sum(p.numel() for layers in (first.attn1, first.attn2, first.ffn) for p in layers.parameters())
    roots = 3 * (learned - config["num_layers"] * 4 * layer)  # of student, critic and real score, in fp32
    assert distill["all", "gathered layers"] == roots + 2 * 2 * layer
    assert distill["all", "whole gradients"] == gradients
    monkeypatch.setattr(forecast, "imagine", lambda *_: {"a step": 1, "walk": 1})  # decides nothing below, takes time
    # With wider layers in the real score, the most gathered at a time are two of those, beside all networks' roots.
    models, wide = networks.open_models(params), config | {"ffn_dim": 3 * config["ffn_dim"]}
    wider = forecast.forecast(replace(models, real=wide), "distill", params.variant("self-forcing"), 1, 3)
    more = {e.what: e.bytes for e in wider.entries if e.role == "all"}
    added = (2 * config["ffn_dim"]) * (2 * config["num_attention_heads"] * config["attention_head_dim"] + 1)
    assert more["gathered layers"] - distill["all", "gathered layers"] == 2 * 2 * added
    assert more["whole gradients"] == gradients
    pairs = planned_entries(params, "pairs", gpus=3)
    assert set(pairs) == {("teacher", "parameters"), ("activations", "phase")}
    assert pairs["teacher", "parameters"] == whole
    sample = planned_entries(params, "sample", batch=2)
    assert sample["student", "parameters"] == half
    tokens = math.prod(sizes.block_shape[1:]) // math.prod(config["patch_size"])
    width = config["num_attention_heads"] * config["attention_head_dim"]
    cache = params.video.window_blocks * config["num_layers"] * tokens * width * 2 * 2  # keys and values in two bytes
    assert sample["rings", "keys and values"] == 2 * cache  # one cache per video
    world = networks.open_models(params).world
    assert sample["decoder", "parameters"] == network_bytes(world.outline("codec", params))
    assert sample["text encoder", "parameters"] == network_bytes(world.outline("text_encoder", params))


def test_sampling_is_planned_as_a_walk_of_a_frozen_student() -> None:
    sizes, variant, config = case(QUICK)
    two = replace(sizes, batch=2)
    sample = planned_entries(sizes.params, "sample", batch=2)
    way = fastest(variant.context)
    peaks = imagine(lambda count, *n: steps.sample(count, two, variant, way, *n), two, [], [config])
    assert sample["rings", "keys and values"] + sample["activations", "phase"] == peaks["walk"]


def test_a_sample_is_planned_step_by_step_with_one_steps_cache() -> None:
    sizes, _, _ = case(QUICK)
    params = sizes.params
    models, hiar = networks.open_models(params), params.variant("hiar")
    fast, slow = (
        {e.what if e.role == "rings" else e.role: e.bytes for e in forecast.sampling(models, hiar, 2, slowly).entries}
        for slowly in (False, True)
    )
    assert fast["keys and values"] == params.schedule.student_steps * slow["keys and values"] > 0
    assert fast["student"] == slow["student"]
    two = replace(sizes, batch=2)
    peaks = imagine(
        lambda count, *n: steps.sample(count, two, hiar, ("step_first", "fused"), *n), two, [], [models.student]
    )
    walked = [
        e.bytes for e in forecast.sampling(models, hiar, 2, True).entries if e.what in ("walk", "keys and values")
    ]
    assert sum(walked) == peaks["walk"]


def test_offloaded_entries_are_on_the_host_and_not_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An offloaded real score leaves two gathered layers on the GPU; networks are sharded either way, here over one."""
    monkeypatch.setattr(forecast, "imagine", lambda *_: {"a step": 10**12})  # a simulated one would take time
    params = load_params(ROOT / "params.yaml")
    tree = read_yaml(ROOT / "params.yaml")

    def found(stage: str, *offload: str) -> list[dict[tuple[str, str], int]]:
        runtime = {"runtime": {"offload": [*offload], "processes": 1}}
        changed = parse_params(merge(merge(tree, SMALL), runtime), Path("on the host"))
        made = forecast.forecast(networks.open_models(changed), stage, params.variant("hiar-no-fkl"), 1)
        return [{(e.role, e.what): e.bytes for e in part} for part in (made.entries, made.host)]

    whole, nothing = found("distill")
    assert nothing == {}
    gpu, host = found("distill", "real_score", "optimizers")
    kinds = (("real score", "parameters"), ("student", "optimiser"), ("critic", "optimiser"))
    real = host["real score", "parameters"]
    assert whole["real score", "parameters"] < real < 2 * whole["real score", "parameters"]
    assert host == {kind: whole[kind] for kind in kinds} | {("real score", "parameters"): real}
    shards = {("all", "gathered layers"), ("all", "whole gradients")}
    assert {*gpu} == {*whole} - {*host} >= shards
    assert gpu["all", "whole gradients"] == whole["student", "gradients"]
    assert all(gpu[kind] == whole[kind] for kind in {*gpu} - shards)
    whole, _ = found("init")
    gpu, host = found("init", "optimizers")
    assert host == {("student", "optimiser"): whole.pop(("student", "optimiser"))}
    assert [{kind for kind in part if kind[0] == "student"} for part in (gpu, whole)] == [
        {("student", what) for what in ("parameters", "gradients", "average")}
    ] * 2


@pytest.fixture
def no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans cover networks alone and take no time, because no step is simulated."""
    monkeypatch.setattr(forecast, "imagine", lambda *_: {"a step": 1, "walk": 1})


@pytest.mark.usefixtures("no_steps")
def test_one_gpu_shards_and_gathers_only_with_processes_1() -> None:
    """`runtime.processes: 1` shards over one GPU, with gathered layers and whole gradients on top."""
    tree = read_yaml(ROOT / "params.yaml")
    found = {}
    for processes in (None, 1):
        params = parse_params(merge(tree, {"runtime": {"processes": processes}}), Path("one"))
        made = forecast.forecast(networks.open_models(params), "distill", params.variant("self-forcing"), 1)
        found[processes] = {(e.role, e.what): e.bytes for e in made.entries}
    more = {kind: found[1].pop(kind) for kind in (("all", "gathered layers"), ("all", "whole gradients"))}
    assert found[1] == found[None]
    assert more["all", "whole gradients"] == found[None]["student", "gradients"]


@pytest.mark.parametrize(("gpus", "weight", "bias"), [(1, 64, 16), (2, 64, 8), (4, 32, 4)])
def test_each_tensor_in_pinned_memory_takes_a_power_of_two(gpus: int, weight: int, bias: int) -> None:
    """For a 3 x 5 matrix and a vector of 3: each of two GPUs has up to two rows, each of four GPUs one."""
    assert networks.pinned_bytes(nn.Linear(5, 3), gpus) == weight + bias


def test_with_offloaded_states_an_update_may_be_the_fullest_phase() -> None:
    peaks = {"rollout": 60, "backward": 90, forecast.UPDATE: 100}
    assert forecast._activations(peaks, 20) == [forecast.Entry("activations", forecast.UPDATE, 100)]
    rings = [forecast.Entry("rings", "keys and values", 20), forecast.Entry("activations", "backward", 70)]
    assert forecast._activations(peaks | {forecast.UPDATE: 80}, 20) == rings


@pytest.mark.usefixtures("no_steps")
def test_an_update_holds_the_offloaded_states_of_one_role_at_a_time() -> None:
    tree = merge(read_yaml(ROOT / "params.yaml"), {"runtime": {"offload": ["optimizers"]}})
    params = parse_params(merge(tree, {"distill": {"critic": {"muon": None}}}), Path("roles that differ"))
    found = forecast.forecast(networks.open_models(params), "distill", params.variant("causvid"), 1)
    states = [entry.bytes for entry in found.host]
    assert len({*states}) == 2
    assert {e.what: e.bytes for e in found.entries if e.role == "activations"} == {forecast.UPDATE: max(states)}


@pytest.mark.usefixtures("no_steps")
@pytest.mark.parametrize("frames", [12, 96])
def test_videos_of_a_batch_are_decoded_one_at_a_time(frames: int) -> None:
    """Regardless of their length, a few latent frames at a time."""
    tree = merge(read_yaml(ROOT / "params.yaml"), {"sample": {"frames": frames}})
    models = networks.open_models(parse_params(tree, Path("sampled")))
    found = forecast.forecast(models, "sample", models.sizes.params.variant("hiar"), 3)
    parts = {entry.what: entry.bytes for entry in found.entries}
    assert parts["keys and values"] + parts["walk"] == 1  # rings are part of a walk's peak
    planned = parts["decoding"]
    codec = cast(Codec, models.world.outline(CODEC, models.sizes.params))
    channels, *size = models.sizes.latent
    latents, decode, count = torch.zeros(1, channels, frames, *size), codec.decoding(), Counting()
    with torch.no_grad(), count, count.phase("decoding"):
        for part in latents.split(codec.chunk, dim=2):
            decode(part)
    assert planned == pytest.approx(count.peaks["decoding"], rel=0.01)


@pytest.mark.usefixtures("no_steps")
def test_the_papers_recipe_has_a_bf16_real_score_and_a_codec_only_for_later_windows() -> None:
    """By the published size: 14,288,491,584 parameters, few of which stay in fp32."""
    recipe = merge(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "experiments" / "wan2.1-1.3b.yaml"))
    params = parse_params(merge(recipe, {"distill": {"windows": 2, "critic_batch": 128}}), Path("two windows"))
    models = networks.open_models(params)

    def planned(models: networks.Models) -> dict[tuple[str, str], int]:
        found = forecast.forecast(models, "distill", params.variant("hiar"), 1, 8)
        return {(e.role, e.what): e.bytes for e in found.entries}

    rows = planned(models)
    assert rows["real score", "parameters"] == pytest.approx(2 * 14.288e9 / 8, rel=0.01)
    assert rows["codec", "parameters"] == models.codec
    one = replace(models.sizes, params=parse_params(recipe, Path("one window")))
    assert ("codec", "parameters") not in planned(replace(models, sizes=one, real=models.student))


def test_an_init_holds_the_causal_teacher_that_it_learns_from() -> None:
    params = load_params(ROOT / "params.yaml")
    consistency = read_yaml(ROOT / "experiments" / "init-consistency.yaml")
    other = parse_params(
        merge(read_yaml(ROOT / "params.yaml"), {"init": consistency["init"]}), Path("init-consistency")
    )
    alone = planned_entries(params, "init")
    assert {role for role, _ in alone} == {"student", "activations"}  # and no layers of other networks
    held = planned_entries(other, "init", gpus=2)
    shape = networks.open_models(other).student
    assert held["teacher", "parameters"] == network_bytes(networks.make_meta(other, shape, half=False))


@pytest.mark.parametrize(
    ("stage", "variant", "solves"),
    [
        ("init", "self-forcing", True),
        ("distill", "hiar", True),
        ("distill", "causvid", True),
        ("distill", "self-forcing", False),
    ],
)
def test_a_training_that_learns_from_pairs_that_are_not_stored_holds_their_teacher_and_solves_a_batch_of_them(
    stage: str, variant: str, solves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def imagine(_: object, sizes: Sizes, trained: list[Config], frozen: list[Config]) -> steps.Peaks:
        return {"a step" if trained else "pairs": 10**9 * sizes.batch}

    monkeypatch.setattr(forecast, "imagine", imagine)  # a simulated one would take time
    for stored in (True, False):
        tree = merge(read_yaml(ROOT / "params.yaml"), {"pairs": {"stored": stored, "batch": 7}})
        params = parse_params(tree, Path("pairs"))
        models = networks.open_models(params)
        found = forecast.forecast(models, stage, params.variant(variant), 2)
        teacher = network_bytes(networks.make_meta(params, models.student, half=False))
        needed = solves and not stored
        assert [e.bytes for e in found.entries if e.role == "teacher of the pairs"] == [teacher] * needed
        assert found.peaks == {"a step": 2 * 10**9} | ({"pairs": 7 * 10**9} if needed else {})


@pytest.mark.long
def test_later_windows_that_are_encoded_anew_are_in_the_plan(tmp_path: Path) -> None:
    """For Wan, whose first latent frame is unlike the others: the codec, and decoding on top of a rollout."""
    make_tiny_wan(tmp_path / "tiny", seed=0)
    tree = merge(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "experiments" / "wan-tiny.yaml"))
    tree["world"]["base"], tree["world"]["prompts"] = str(tmp_path / "tiny"), str(ROOT / "experiments" / "prompts.txt")
    two = parse_params(merge(tree, {"distill": {"windows": 2}}), Path("two windows"))
    models = networks.open_models(two)
    entries = planned_entries(two, "distill")
    assert entries["codec", "parameters"] == network_bytes(models.world.outline("codec", two))
    assert ("codec", "parameters") not in planned_entries(parse_params(tree, Path("one window")), "distill")
    sizes, variant = replace(models.sizes, batch=1), two.variant("self-forcing")
    distill = partial(imagine, lambda count, *n: steps.distill(count, sizes, variant, *n), sizes)
    planned = distill([models.student, models.student], [models.student])
    assert planned == pytest.approx(measured_peaks(sizes, variant, models.student), rel=0.01)
    assert planned["later windows re-encoded"] > planned["rollout"]


def test_a_block_is_as_high_and_wide_as_the_clips_that_it_is_compared_with() -> None:
    """On Wan, whose frames are not square as the built-in world's are."""
    sizes = replace(case(QUICK)[0], latent=(16, 60, 104))
    assert sizes.block_shape == (16, sizes.params.video.block, 60, 104)
    assert sizes.clips(2) == (2, 16, sizes.params.video.frames, 60, 104)


def test_wans_text_encoder_is_read_in_bf16() -> None:
    """UMT5-XXL's encoder: 5.68 billion parameters, including the embedding of 256,384 words."""
    recipe = merge(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "experiments" / "wan2.1-1.3b.yaml"))
    assert networks.open_models(parse_params(recipe, Path("recipe"))).text == pytest.approx(2 * 5.68e9, rel=0.01)
    full = merge(recipe, {"runtime": {"precision": "no"}})
    assert networks.open_models(parse_params(full, Path("recipe"))).text == pytest.approx(4 * 5.68e9, rel=0.01)


def test_the_dearest_variant_has_the_most_caches_and_the_regulariser() -> None:
    params = load_params(ROOT / "params.yaml")
    for names in (["hiar-no-fkl", "hiar"], ["hiar", "hiar-no-fkl"], ["self-forcing", "hiar"], ["hiar", "self-forcing"]):
        compare = params.compare.model_copy(update={"distill": names})
        assert dearest(params.model_copy(update={"compare": compare}))[1] == "hiar"


def test_a_plan_fits_up_to_the_usable_part_of_a_gpu() -> None:
    entries = (forecast.Entry("student", "parameters", 60), forecast.Entry("activations", "walk", 30))
    found = forecast.Forecast("sample", entries)
    assert found.total == 90
    assert found.fits(90 / forecast.USABLE + 1e-6)
    assert not found.fits(89 / forecast.USABLE)


@pytest.mark.long
def test_a_step_of_training_stays_within_the_plan() -> None:
    """A real `distillation_step` at its most expensive exit, with all its phases, clipping and optimisers."""
    sizes, variant, config = case("HiAR with a regulariser")
    params = sizes.params
    spec = params.distill.model_copy(
        update={"batch": 2, "critic_batch": 2 * params.distill.windows, "critic_warmup": 0}
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    student, critic, real = (make_network(params, config, None, trained) for trained in (True, True, False))
    pairs = torch.zeros(4, params.schedule.student_steps + 1, *sizes.clips(1)[1:])
    sigmas = step_sigmas(params.schedule.student_steps, params.schedule.student_shift)
    job = Distillation(
        student=make_role(student, ADAM, 4),
        critic=make_role(critic, ADAM, 4),
        teacher=real,
        roll_out=SelfRollout(
            sizes.block_shape, spec.windows, variant, params.video, params.schedule, params.conventions
        ),
        codec=PatchCodec(patch=1, channels=3, width=4, depth=1),
        settings=spec,
        prompts=lambda samples: normals("measuring", 0, samples, (sizes.words, config["text_dim"])),
        no_text=torch.zeros(1, sizes.words, config["text_dim"]),
        student_samples=0,
        critic_samples=100,
        pairs=Pairs(pairs, sigmas, lambda chosen: sizes.text(config, len(chosen))),
        seed=0,
        accelerator=Accelerator(cpu=True),
    )
    distillation_step(job, 0)  # so that optimisers have states
    for network in (student, critic):
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
    count = Counting()
    with count, count.phase("step"):
        distillation_step(job, 1)
    run = partial(imagine, lambda count, *n: steps.distill(count, sizes, variant, *n), sizes)
    planned = max(run([config, config], [config]).values())
    assert 0.85 * planned < count.peaks["step"] < 1.15 * planned


@pytest.mark.long
def test_checkpointing_and_more_gpus_take_less() -> None:
    params = case("HiAR with a regulariser")[0].params
    saving = params.model_copy(update={"runtime": params.runtime.model_copy(update={"checkpointing": True})})
    variant = params.variant("hiar")
    found = {
        name: forecast.forecast(networks.open_models(which), "distill", variant, 16, gpus)
        for name, which, gpus in (("plain", params, 1), ("saving", saving, 1), ("shared out", saving, 8))
    }
    assert found["plain"].total > 1.5 * found["saving"].total > 1.5 * found["shared out"].total
    needed = found["saving"].total / forecast.USABLE
    models = networks.open_models(params)
    assert advice(models, found["plain"], variant, 16, 1, 1.01 * found["plain"].total / forecast.USABLE) == "fits"
    advised = advice(models, found["plain"], variant, 16, 1, 1.01 * needed)
    assert advised == "does not fit; with runtime.checkpointing: true it does"
    assert "does not fit, even with every option" in advice(models, found["plain"], variant, 16, 1, 1000)


@pytest.fixture(scope="module")
def recipe() -> str:
    """The plan of the paper's recipe, on a machine without its models."""
    return hiar("plan", "wan2.1-1.3b", "--gpus", 8, "--stage", "distill", folder=ROOT).stdout


@pytest.mark.long
def test_the_papers_recipe_fits_eight_gpus_of_80_gb(recipe: str) -> None:
    """By the published sizes: 1,418,996,800 parameters, and 14,288,491,584, few of which stay in fp32."""
    rows = {tuple(line[2:33].split()): float(line[33:44]) for line in recipe.splitlines() if line.startswith("  ")}
    assert rows["student", "parameters"] == pytest.approx(4 * 1.4190 / 8, abs=0.01)
    assert rows["student", "optimiser"] == pytest.approx(8 * 1.4190 / 8, abs=0.01)
    assert rows["real", "score", "parameters"] == pytest.approx(2 * 14.288 / 8, rel=0.01)
    assert rows["rings", "keys", "and", "values"] == pytest.approx(6.04, abs=0.01)
    assert rows["pairs",] == pytest.approx(16384 * 5 * 21 * 16 * 60 * 104 * 4 / 1e9, abs=0.01)
    assert recipe.count("  fits\n") == 1


def test_unplanned_stages_and_missing_base_models_are_refused_in_one_line(tmp_path: Path) -> None:
    def stderr(*args: Any) -> str:
        return hiar("plan", *args, folder=ROOT, code=2).stderr

    assert stderr("--stage", "codec").startswith(
        "error: --stage = codec: is not planned; give pairs, init, distill, sam"
    )
    other = tmp_path / "experiments"
    other.mkdir()
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    recipe = (ROOT / "experiments" / "wan2.1-1.3b.yaml").read_text()
    (other / "mine.yaml").write_text(recipe.replace("models/Wan2.1-T2V-14B-Diffusers", "models/Mine"))
    error = hiar("plan", "mine", folder=tmp_path, code=2).stderr
    assert error.startswith("error: models/Mine/transformer/config.json: no such file; copy the base model there, or")
    assert error.count("\n") == 1
