"""Wan as a world: the whole chain on the tiny Wan, its teacher against diffusers' pipeline, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from safetensors.torch import load_file
from shared import runtime
from tiny import relative_error
from transformers import PreTrainedTokenizerFast
from vbench_toys import behave, build_environment, lay_weights, requests_of

from hiar import config
from hiar.config import Params
from hiar.config.section import VBenchDimension
from hiar.errors import RunFailed, UserError
from hiar.io.artifacts import read_manifest
from hiar.io.files import file_hash
from hiar.io.fingerprints import cache_folder, require_content
from hiar.io.process_group import joined
from hiar.io.video import read_mp4
from hiar.judges.interface import open_judge
from hiar.late import let_in
from hiar.live import serving
from hiar.models.denoiser import guided_x0
from hiar.models.generator import Generator, load_generator
from hiar.noise import normals
from hiar.parameters import merge, parse_params, read_yaml
from hiar.stages import distill, prompted
from hiar.stages.common import sample_world
from hiar.stages.comparison import read_summary
from hiar.stages.exchange import describe_model, export_checkpoint
from hiar.stages.prompted import sample_prompts
from hiar.stages.request import Request
from hiar.stages.sample import sample_latents
from hiar.statistics.validations import read_validations
from hiar.training.parallel import shard, whole
from hiar.vbench.dimensions import DIMENSIONS
from hiar.vbench.totals import totals
from hiar.workspace import open_workspace
from hiar.worlds.interface import FIRST_CLIP, open_world
from hiar.worlds.wan import CachedText, embeddings
from hiar.worlds.wan.embeddings import Embeddings
from hiar.worlds.wan.formats.checking import transformer_shapes
from hiar.worlds.wan.formats.configs import read_config
from hiar.worlds.wan.formats.loading import load_transformer
from hiar.worlds.wan.formats.stored import Stored, stored_state
from hiar.worlds.wan.formats.writing import write_diffusers
from hiar.worlds.wan.text import NEGATIVE_PROMPT, TextEncoder, load_text_encoder

ROOT = Path(__file__).parents[3]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PARTS = ("transformer", "text_encoder", "codec")
FULL = torch.float32
PROMPTS = ["A red fox trots along a snowy ridge.", "Rain on a tram window at night."]


@pytest.fixture(scope="session")
def params() -> Params:
    tree = merge(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "experiments" / "wan-tiny.yaml"))
    prompts = str(ROOT / "experiments" / "prompts.txt")
    small = {
        "world": {"kind": "wan", "prompts": prompts},
        "sample": {"videos": 2, "frames": 9, "prompts": prompts},
        "report": {"videos": 2},
    }
    return parse_params(merge(tree, small), Path("wan-tiny"))


@pytest.fixture(scope="session")
def chain(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every stage of the tiny Wan has run."""
    workspace = tmp_path_factory.mktemp("wan") / "workspace"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIAR_TRACKING", "off")
        for name in ("codec", "teacher", "pairs", "init"):
            _run(name, params, workspace, seed=0)
        for variant in params.compare.distill:
            _run("distill", params, workspace, seed=0, variant=variant)
            for model in ("init", "distill"):
                _run("sample", params, workspace, seed=0, model=model, variant=variant)
        _run("sample", params, workspace, seed=0, model="teacher", variant=None)
        _run("score", params, workspace)
        _run("report", params, workspace)
    return workspace


def _run(name: str, *arguments: object, **options: object) -> None:
    import_module(f"hiar.stages.{name}").run(*arguments, **options)


def test_every_stage_leaves_what_it_should(chain: Path, params: Params) -> None:
    root = chain / "artifacts" / "seed-0"
    for model in ("init", "distill"):
        for variant in params.compare.distill:
            folder = root / "samples" / model / variant
            manifest = read_manifest(folder, "samples")
            assert (manifest["first_block"], manifest["block"], manifest["world"]["kind"]) == (9, 12, "wan")
            assert read_mp4(folder / "0000.mp4").shape == (4 * (9 - 1) + 1, 64, 96, 3)
    summary = read_summary(params, chain)
    assert len(summary) == 5
    assert all(row["metrics"].keys() >= {"saturation_drift", "border_jump"} for row in summary)
    assert json.loads((chain / "metrics" / "world.json").read_text()) == []
    page = (chain / "reports" / "index.html").read_text()
    assert "<video" in page
    # Clips and rollouts of 33 pictures, at 16 a second: nothing goes on for longer than the clips.
    assert "trained on clips of 9 frames (2.06 s), rolled out for 9 (2.06 s)" in page
    assert "these rollouts go on" not in page


def test_a_base_is_adopted_by_reference(chain: Path) -> None:
    root = chain / "artifacts" / "seed-0"
    for folder, parts in (("teacher", 3), ("init", 2), ("distill/hiar", 2)):
        assert len(list((root / folder).rglob("reference.json"))) == parts
    assert not list((root / "teacher").rglob("*.safetensors"))
    assert [path.name for path in (root / "codec").iterdir() if path.name != "manifest.json"] == ["reference.json"]


def test_a_model_is_described_with_its_own_parts_and_those_of_its_base(chain: Path) -> None:
    """With a hash that distinguishes two bases of the same name."""
    student, teacher = (chain / "artifacts" / "seed-0" / name for name in ("distill/hiar", "teacher"))
    of_student, of_teacher = (dict(describe_model(folder, None, verify=False)) for folder in (student, teacher))
    base = load_generator(teacher).world.base
    assert re.fullmatch(r"its own, [0-9.e-]+ GB", of_student["transformer"])
    assert re.fullmatch(r"\d+ solver steps, guidance [\d.]+; bidirectional", of_teacher["walk"])
    for part in ("text_encoder", "codec"):
        assert of_student[part] == of_teacher[part]
    hashes = [re.fullmatch(rf"that of {base}, SHA-256 ([0-9a-f]{{64}})", one)[1] for one in map(of_teacher.get, PARTS)]
    assert len(set(hashes)) == 3


@pytest.mark.long
def test_a_student_is_validated_while_it_trains(chain: Path, params: Params, tmp_path: Path) -> None:
    """With the metrics of Wan's judge; weights are the same without validation, and the best refers to the base."""
    for name in ("teacher", "pairs", "init"):
        shutil.copytree(chain / "artifacts" / "seed-0" / name, tmp_path / "artifacts" / "seed-0" / name)
    tree = params.model_dump(mode="json")
    watch = {"every": 2, "prompts": 2, "frames": 9, "metric": "saturation_drift", "bidirectional": True}
    tree["distill"]["validation"] = watch
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HIAR_TRACKING", "off")
        _run("distill", parse_params(tree, Path("watched")), tmp_path, seed=0, variant="hiar")
    student, without = (place / "artifacts" / "seed-0" / "distill" / "hiar" for place in (tmp_path, chain))
    assert (student / WEIGHTS).read_bytes() == (without / WEIGHTS).read_bytes()
    validations = read_validations(student)
    assert [one.step for one in validations] == [2, 4, 5]
    assert all({"saturation_drift", "bidirectional/saturation_drift"} <= one.metrics.keys() for one in validations)
    best = min(validations, key=lambda one: one.metrics["saturation_drift"])
    assert read_manifest(student / "best", "checkpoint")["updates"] == best.step
    assert len(list((student / "best").rglob("reference.json"))) == 2
    assert load_generator(student / "best").card.walk == load_generator(without).card.walk


@pytest.fixture(scope="module")
def teacher(chain: Path) -> Generator:
    return load_generator(chain / "artifacts" / "seed-0" / "teacher")


def test_the_teacher_samples_as_diffusers_pipeline_does(teacher: Generator, base: Path) -> None:
    """UniPC, guidance, shift, negative prompt and the cached text, on the same noise."""
    card = teacher.card
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base / "tokenizer")  # see `wan.text.load_tokenizer`
    let_in("transformers")
    pipeline = WanPipeline.from_pretrained(base, tokenizer=tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.register_to_config(flow_shift=card.schedule.teacher_shift)
    progress: list[int] = []
    ours = sample_latents(teacher, PROMPTS, card.video.frames, None, 7, range(2), progress.append)
    assert len(progress) == card.solver_steps and sum(progress) == 2 * card.video.frames
    noise = normals("clip noise", 7, range(2), ours.shape[1:])
    theirs = pipeline(
        PROMPTS,
        negative_prompt=[teacher.world.negative_prompt] * 2,
        height=64,
        width=96,
        num_frames=4 * (card.video.frames - 1) + 1,
        num_inference_steps=card.solver_steps,
        guidance_scale=card.guidance,
        latents=noise,
        output_type="latent",
    ).frames
    assert relative_error(ours, theirs) < 1e-4
    other = sample_latents(teacher, PROMPTS[::-1], card.video.frames, None, 7, range(2))
    assert relative_error(other, theirs) > 1e-2  # the prompt makes a difference


def test_another_model_may_be_the_real_score(teacher: Generator, base: Path, tmp_path: Path) -> None:
    other = distill._load_real_score(teacher, base, None, FULL)
    assert other is not teacher.denoiser
    expected = teacher.denoiser.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    assert not any(parameter.requires_grad for parameter in other.parameters())
    own = teacher.denoiser.transformer.config
    others = {"in_channels": 32, "out_channels": 32, "text_dim": 64, "patch_size": (1, 1, 1)}
    for field, value in others.items():
        folder = tmp_path / field / "transformer"
        folder.mkdir(parents=True)
        write_diffusers(*_of_sizes(**{"text_dim": own["text_dim"], field: value}), folder)
        message = re.escape(
            f"distill.real_score = {folder.parent}: {field} = {value}, the teacher's is {own[field]}; name"
        )
        with pytest.raises(UserError, match=message):
            distill._load_real_score(teacher, folder.parent, None, FULL)
    with pytest.raises(UserError, match=r"transformer: SHA-256 = .*: params\.yaml says distill\.real_score_sha256"):
        distill._load_real_score(teacher, base, "0" * 64, FULL)


@torch.no_grad()
def test_a_bf16_real_score_equals_the_fp32_one_under_autocast_up_to_rounding(teacher: Generator, base: Path) -> None:
    full, half = (distill._load_real_score(teacher, base, None, dtype) for dtype in (FULL, torch.bfloat16))
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    x = normals("measuring", 0, range(2), (16, 3, 8, 12))
    sigma, text = torch.tensor([0.4, 0.9]), teacher.embed(PROMPTS)
    with torch.autocast("cpu", torch.bfloat16):
        scores = [guided_x0(model, x, sigma, text, text.flip(0), 4.0) for model in (half, full)]
    exact = guided_x0(full, x, sigma, text, text.flip(0), 4.0)
    assert scores[0].dtype == torch.float32
    rounding = relative_error(scores[1], exact)
    assert 0 < rounding < 0.05
    assert relative_error(scores[0], scores[1]) < 2 * rounding


def test_a_sharded_real_score_is_the_same_and_its_file_unchanged(teacher: Generator, base: Path) -> None:
    """In any dtype: shards are read from the memory-mapped file."""
    file = base / WEIGHTS
    before = file.read_bytes()
    for dtype in (FULL, torch.bfloat16):
        expected = distill._load_real_score(teacher, base, None, dtype).state_dict()
        with joined(runtime(1, half=dtype == torch.bfloat16)) as ranks:
            network = distill._load_real_score(teacher, base, None, None)
            shard(network, ranks, dtype=dtype)
            found = {name: whole(value) for name, value in network.state_dict().items()}
        assert found.keys() == expected.keys()
        assert {name: one.dtype for name, one in found.items()} == {name: one.dtype for name, one in expected.items()}
        assert all(torch.equal(one, expected[name]) for name, one in found.items())
    assert file.read_bytes() == before


def test_init_learns_the_same_in_micro_batches(
    chain: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part has its own states, levels and text. With AdamW: Muon's half precision amplifies the last bits."""
    monkeypatch.setenv("HIAR_TRACKING", "off")
    adamw = params.init.training.optimizer.model_copy(update={"muon": None})
    learnt = []
    for size in (None, 1):
        made = tmp_path / str(size) / "artifacts" / "seed-0"
        for name in ("codec", "teacher", "pairs"):
            shutil.copytree(chain / "artifacts" / "seed-0" / name, made / name, symlinks=True)
        training = params.init.training.model_copy(update={"micro_batch": size, "optimizer": adamw})
        init = params.init.model_copy(update={"training": training})
        _run("init", params.model_copy(update={"init": init}), tmp_path / str(size), seed=0)
        learnt.append(load_file(made / "init" / WEIGHTS))
    whole, parts = learnt
    assert max(float((one - parts[name]).abs().max()) for name, one in whole.items()) < 1e-5


def test_distillation_loads_the_named_real_score(chain: Path, params: Params, tmp_path: Path) -> None:
    shutil.copytree(chain, tmp_path / "work")
    named = params.distill.model_copy(update={"real_score": tmp_path / "gone"})
    with pytest.raises(UserError, match=r"gone/transformer"):
        _run("distill", params.model_copy(update={"distill": named}), tmp_path / "work", seed=0, variant="hiar")


def test_an_experiment_ends_in_vbenchs_figures(
    chain: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a toy in place of VBench, whose values are file sizes."""
    names = ["imaging_quality", "temporal_flickering"]
    with_vbench = params.model_copy(update={"score": params.score.model_copy(update={"vbench": names})})
    monkeypatch.setenv("HIAR_TRACKING", "off")
    monkeypatch.setenv("HIAR_VBENCH", str(tmp_path / "venv"))
    with pytest.raises(UserError, match="venv: holds no environment of VBench; build it with `make vbench`"):
        _run("vbench", with_vbench, chain, seed=0, dimension="imaging_quality")
    with pytest.raises(
        UserError, match="dimension 'imaging_qualty': is not one of VBench's; did you mean 'imaging_quality'"
    ):
        _run("vbench", with_vbench, chain, seed=0, dimension="imaging_qualty")
    build_environment(tmp_path / "venv")
    weights = lay_weights(tmp_path / "weights", *names)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(weights))
    work = tmp_path / "work"
    shutil.copytree(chain, work)
    with pytest.raises(UserError, match=r"vbench/imaging_quality/manifest\.json: no such file"):
        _run("score", with_vbench, work)
    for _ in range(2):
        for name in names:
            _run("vbench", with_vbench, work, seed=0, dimension=name)
        _run("score", with_vbench, work)
    samples = work / "artifacts" / "seed-0" / "samples"
    assert len(requests_of(weights)) == 2 * 5 * 2  # dimensions, contenders, videos: none in the second run
    for row in read_summary(with_vbench, work):
        folder = samples / row["stage"] / ("" if row["stage"] == "teacher" else row["variant"])
        sizes = [path.stat().st_size / 1e7 for path in sorted(folder.glob("*.mp4"))]
        assert row["metrics"]["vbench_imaging_quality"]["mean"] == pytest.approx(sum(sizes) / 2)
        assert (row["metrics"]["vbench_imaging_quality"]["n"], len(sizes)) == (2, 2)
    lines = [json.loads(line) for line in (work / "metrics" / "videos.jsonl").read_text().splitlines()]
    assert all(line["metrics"].keys() >= {"vbench_temporal_flickering", "border_jump"} for line in lines)
    mean = sum(line["metrics"]["vbench_imaging_quality"] for line in lines if line["stage"] == "teacher") / 2
    assert mean == pytest.approx(read_summary(with_vbench, work)[0]["metrics"]["vbench_imaging_quality"]["mean"])
    made = json.loads((work / "metrics" / "vbench.json").read_text())
    assert made["seed-0/samples/teacher"]["imaging_quality"]["weights"].keys() == {
        "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"
    }
    _run("report", with_vbench, work)
    assert "VBench imaging quality" in (work / "reports" / "index.html").read_text()
    behave(weights, temporal_flickering="raise")
    shutil.rmtree(work / ".hiar" / "vbench")
    with pytest.raises(RunFailed, match="samples/teacher: no value; temporal_flickering: "):
        _run("vbench", with_vbench, work, seed=0, dimension="temporal_flickering")
    variant = params.compare.distill[0]
    again = params.model_copy(update={"sample": params.sample.model_copy(update={"frames": 6})})
    _run("sample", again, work, seed=0, model="distill", variant=variant)
    with pytest.raises(
        UserError, match=f"was made from other samples of distill/{variant} than the present ones; run `hiar st"
    ):
        _run("score", with_vbench, work)


def test_an_experiment_ends_in_the_papers_quality(
    chain: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All seven dimensions give VBench's Quality, of all videos and of each."""
    names = [name for name, one in DIMENSIONS.items() if one.group == "quality"]
    with_vbench = params.model_copy(update={"score": params.score.model_copy(update={"vbench": names})})
    monkeypatch.setenv("HIAR_TRACKING", "off")
    monkeypatch.setenv("HIAR_VBENCH", str(build_environment(tmp_path / "venv")))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(lay_weights(tmp_path / "weights", *names)))
    work = tmp_path / "work"
    shutil.copytree(chain, work)
    for name in names:
        _run("vbench", with_vbench, work, seed=0, dimension=name)
    _run("score", with_vbench, work)
    for row in read_summary(with_vbench, work):
        values = {name: row["metrics"][f"vbench_{name}"]["mean"] for name in names}
        assert row["metrics"]["vbench_quality"]["mean"] == pytest.approx(totals(values).quality)
        assert "vbench_total" not in row["metrics"]
    line = json.loads((work / "metrics" / "videos.jsonl").read_text().splitlines()[1])
    own = totals({name: line["metrics"][f"vbench_{name}"] for name in names}).quality
    assert line["metrics"]["vbench_quality"] == pytest.approx(own)
    _run("report", with_vbench, work)
    assert "VBench Quality" in (work / "reports" / "index.html").read_text()


def test_dimensions_are_vbenchs() -> None:
    assert get_args(VBenchDimension) == tuple(DIMENSIONS)


def test_an_init_may_be_a_released_file(
    chain: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A released file in place of the regression; distillation then starts from it.

    The index that an interrupted import of a source in several files left is not part of it.
    """
    monkeypatch.setenv("HIAR_TRACKING", "off")
    made = chain / "artifacts" / "seed-0" / "init"
    export_checkpoint(made, "self-forcing", tmp_path / "ode_init.pt")
    work = tmp_path / "work"
    shutil.copytree(chain, work, ignore=lambda folder, names: {"init", "samples", "distill"} & set(names))
    adopted = {"init": {"kind": "adopted", "source": str(tmp_path / "ode_init.pt"), "weights": "generator"}}
    other = merge(adopted, {"init": {"source_sha256": "0" * 64}})
    with pytest.raises(UserError, match=r"ode_init\.pt: SHA-256 = .*: params\.yaml says init\.source_sha256 = 0000"):
        _run("init", parse_params(merge(params.model_dump(mode="json"), other), Path("mine.yaml")), work, seed=0)
    adopting = parse_params(merge(params.model_dump(mode="json"), adopted), Path("mine.yaml"))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hiar.stages.init.save_card", interrupted)
        _run("init", adopting, work, seed=0)
    (work / "artifacts" / "seed-0" / "init.partial" / f"{WEIGHTS}.index.json").write_text('{"weight_map": {}}')
    _run("init", adopting, work, seed=0)
    assert sorted(path.name for path in (work / "artifacts/seed-0/init" / WEIGHTS).parent.iterdir()) == [
        "config.json",
        Path(WEIGHTS).name,
    ]
    init = load_generator(work / "artifacts" / "seed-0" / "init")
    assert init.card == load_generator(made).card
    before = load_generator(made).denoiser.state_dict()
    assert all(torch.equal(before[name], value) for name, value in init.denoiser.state_dict().items())
    assert read_manifest(work / "artifacts/seed-0/init", "checkpoint")["source"] == "ode_init.pt"
    _run("distill", adopting, work, seed=0, variant="self-forcing")


def test_the_causal_teacher_of_an_init_may_be_a_released_file(
    chain: Path, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Consistency with such a teacher: at a learning rate of 1e-30 the student stays as in the file."""
    monkeypatch.setenv("HIAR_TRACKING", "off")
    export_checkpoint(chain / "artifacts" / "seed-0" / "distill" / "hiar", "self-forcing", tmp_path / "ar_diffusion.pt")
    training = params.init.model_dump(mode="json")["training"] | {"steps": 2, "batch": 2}
    training["optimizer"] |= {"muon": None, "ema": 0.5, "ema_from": 0}
    training["optimizer"]["adamw"] |= {"lr": 1e-30, "weight_decay": 0.0}
    source = {"training": None, "sigma_floor": 0.5, "source": str(tmp_path / "ar_diffusion.pt"), "weights": "generator"}
    own = {"kind": "consistency", "teacher": source, "solver_steps": 4, "guidance": 2.0, "training": training}
    work = tmp_path / "work"
    shutil.copytree(chain, work, ignore=lambda folder, names: {"init", "samples", "distill"} & set(names))
    _run("init", parse_params(merge(params.model_dump(mode="json"), {"init": own}), Path("mine.yaml")), work, seed=0)
    made, released = (
        load_file(root / WEIGHTS)
        for root in (work / "artifacts" / "seed-0" / "init", chain / "artifacts" / "seed-0" / "distill" / "hiar")
    )
    assert all(torch.equal(released[name], value) for name, value in made.items())


def _of_sizes(**sizes: Any) -> tuple[dict[str, Stored], dict[str, object]]:
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, ffn_dim=128, num_layers=1, **sizes
    )
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    return stored_state(transformer.state_dict(), "test"), config


def test_the_judge_knows_that_the_first_block_is_shorter(params: Params) -> None:
    frames = torch.zeros(1, 40, 8, 8, 3, dtype=torch.uint8)
    frames[:, [*range(9, 21), *range(33, 40)]] = 50
    judge = open_judge(params.world, params.score, 9, 12)
    first, rest = frames[:, :15], frames[:, 15:]
    findings = [judge.look(first, None, ["x"]), judge.look(rest, first[:, -1:], ["x"])]
    joined = {name: torch.cat([one[name] for one in findings], dim=1) for name in findings[0]}
    metrics = judge.measure(joined)
    assert metrics["border_jump"].item() == pytest.approx((50 + 0.25) / 0.25)
    assert metrics.keys() >= {*judge.columns, *(f"{name}_segment_1" for name in judge.courses)}
    least = judge.least_frames
    judge.measure(judge.look(frames[:, :least], None, ["x"]))
    with pytest.raises(ValueError, match="cannot be cut into"):
        judge.measure(judge.look(frames[:, : least - 1], None, ["x"]))


def test_a_workspace_holds_nothing_of_another_kind_of_world(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    workspace = open_workspace(tmp_path, "wan-tiny")
    world = read_yaml(workspace / "params.yaml")["world"]
    assert (world["kind"], "size" in world) == ("wan", False)
    assert (workspace / world["prompts"]).read_text().startswith("A red fox")  # by a link to the project's file


def test_a_changed_prompt_is_a_changed_parameter(tmp_path: Path) -> None:
    """DVC compares parameters: `hiar run` pins the files' contents, and a stage refuses files that differ from them."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "experiments").mkdir()
    files = {name: tmp_path / "experiments" / f"{name}.txt" for name in ("world", "sample")}
    tree = read_yaml(ROOT / "experiments" / "wan-tiny.yaml")
    for name, file in files.items():
        file.write_text("a fox\n")
        tree[name]["prompts"] = f"experiments/{name}.txt"
    (tmp_path / "experiments" / "wan-tiny.yaml").write_text(yaml.safe_dump(tree))

    def pinned() -> list[str]:
        written = read_yaml(open_workspace(tmp_path, "wan-tiny") / "params.yaml")
        return [written[name]["prompts_sha256"] for name in files]

    before = pinned()
    assert before == [file_hash(file) for file in files.values()] == pinned()
    files["sample"].write_text("a hare\n")
    world, sample = pinned()
    assert (world, sample) == (before[0], file_hash(files["sample"]))
    params = parse_params(read_yaml(tmp_path / "runs/wan-tiny/params.yaml"), Path("wan-tiny"))
    here = params.world.model_copy(update={"prompts": files["world"]})
    assert open_world(here).prompts(seed=0, first=0, count=1) == ["a fox"]
    files["world"].write_text("a bear\n")
    with pytest.raises(UserError, match=rf"world\.txt: SHA-256 = .*: params.yaml says {world}; restore the file"):
        open_world(here).prompts(seed=0, first=0, count=1)
    files["world"].unlink()
    with pytest.raises(UserError, match=r"^--prompt: is missing, and .* \(.*world\.txt: no such file\); give one$"):
        serving.own_prompt(open_world(here), 0)


def save_student(path: Path, base: Path, seed: int, *sets: str) -> None:
    """Save random weights of the base's size in the format of Self-Forcing's files."""
    random = torch.Generator().manual_seed(seed)
    shapes = transformer_shapes(read_config(base / "transformer" / "config.json", {}))
    state = {f"model.{name}": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    torch.save(dict.fromkeys(sets or ("generator",), state), path)


def test_other_weights_in_a_named_file_are_a_changed_parameter(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "models" / "large" / "transformer").mkdir(parents=True)
    init, large = tmp_path / "models" / "ode_init.pt", tmp_path / "models" / "large" / "transformer" / "weights"
    tree = read_yaml(ROOT / "experiments" / "wan-tiny.yaml")
    tree["init"] = {"kind": "adopted", "source": "models/ode_init.pt"}
    tree["distill"]["real_score"] = "models/large"
    tree["pairs"]["source"] = "models/pairs"
    (tmp_path / "models" / "pairs").mkdir()
    (manifest := tmp_path / "models" / "pairs" / "manifest.json").write_text("{}")
    (tmp_path / "experiments" / "wan-tiny.yaml").write_text(yaml.safe_dump(tree))

    def pinned() -> tuple[str | None, str | None]:
        written = read_yaml(open_workspace(tmp_path, "wan-tiny") / "params.yaml")
        return written["init"].get("source_sha256"), written["distill"].get("real_score_sha256")

    large.write_text("one")
    assert pinned()[0] is None  # left to the stage, with a warning before the first one runs
    assert "models/ode_init.pt: is missing, and the stage that reads it will need it" in capsys.readouterr().err
    save_student(init, base, 1)
    before = pinned()
    assert "ode_init" not in capsys.readouterr().err
    require_content(init, before[0], "init.source_sha256")
    assert pinned() == before
    (tmp_path / "models" / "large" / "vae").mkdir()
    (tmp_path / "models" / "large" / "vae" / "weights").write_text("of no real score")
    assert pinned() == before
    large.write_text("another")
    assert [now == then for now, then in zip(pinned(), before, strict=True)] == [True, False]
    save_student(init, base, 2)
    assert pinned()[0] != before[0]
    message = rf"ode_init\.pt: SHA-256 = .*: params\.yaml says init\.source_sha256 = {before[0]}; restore the file"
    with pytest.raises(UserError, match=message):
        require_content(init, before[0], "init.source_sha256")
    causal = read_yaml(ROOT / "experiments" / "init-consistency.yaml")["init"]
    tree["init"] = causal | {"teacher": {"training": None, "sigma_floor": 0.5, "source": "models/ode_init.pt"}}
    (tmp_path / "experiments" / "wan-tiny.yaml").write_text(yaml.safe_dump(tree))
    digest = read_yaml(open_workspace(tmp_path, "wan-tiny") / "params.yaml")["init"]["teacher"]["source_sha256"]
    require_content(init, digest, "init.teacher.source_sha256")
    digest = read_yaml(tmp_path / "runs" / "wan-tiny" / "params.yaml")["pairs"]["source_sha256"]
    require_content(manifest, digest, "pairs.source_sha256")
    tree["pairs"]["source_sha256"] = before[0]  # set by the user, though it is not the file's hash
    (tmp_path / "experiments" / "wan-tiny.yaml").write_text(yaml.safe_dump(tree))
    assert read_yaml(open_workspace(tmp_path, "wan-tiny") / "params.yaml")["pairs"]["source_sha256"] == before[0]


def test_weights_that_cannot_be_adopted_are_refused_before_the_first_stage(base: Path, tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "models").mkdir()
    tree = read_yaml(ROOT / "experiments" / "wan-tiny.yaml")

    def opened(**init: Any) -> None:
        (tmp_path / "experiments" / "x.yaml").write_text(yaml.safe_dump(tree | {"init": init}))
        open_workspace(tmp_path, "x")

    student = tmp_path / "models" / "student.pt"
    adopted = {"kind": "adopted", "source": "models/student.pt"}
    teacher = {"training": None, "sigma_floor": 0.5, "source": "models/student.pt"}
    learnt = read_yaml(ROOT / "experiments" / "init-consistency.yaml")["init"] | {"teacher": teacher}
    save_student(student, base, 1, "generator", "generator_ema")
    for init in (adopted, learnt):
        with pytest.raises(
            UserError, match=r"student\.pt: holds generator, generator_ema: several sets .* weights = generator or"
        ):
            opened(**init)
    opened(**adopted, weights="generator_ema")
    opened(**learnt | {"teacher": teacher | {"weights": "generator"}})
    student.write_bytes(student.read_bytes()[:-100])
    gone = config.WanWorld.model_validate(tree["world"] | {"base": str(tmp_path / "gone")})
    open_world(gone).check_foreign(student, None)  # without the base, its sizes are not known: the stage refuses
    with pytest.raises(UserError, match=r"student\.pt"):
        opened(**adopted, weights="generator_ema")


def test_what_scoring_long_videos_needs_is_checked_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "experiments").mkdir()
    monkeypatch.setenv("HIAR_VBENCH", str(build_environment(tmp_path / "vbench")))
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(lay_weights(tmp_path / "weights", "subject_consistency")))
    tree = read_yaml(ROOT / "experiments" / "wan-tiny.yaml")
    tree["world"]["frames_per_second"], tree["score"] = 16, {"vbench": ["subject_consistency"]}

    def opened(frames: int) -> None:
        tree["sample"]["frames"] = frames
        (tmp_path / "experiments" / "x.yaml").write_text(yaml.safe_dump(tree))
        open_workspace(tmp_path, "x")

    opened(18)  # 69 pictures
    with pytest.raises(UserError, match=r"^subject_consistency_across_clips: "):
        opened(21)  # 81 pictures, 5.06 s


def test_an_embedding_does_not_depend_on_its_batch(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ROOT / "experiments" / "prompts.txt").read_text().splitlines()
    found = []
    for cache in ("alone", "together"):
        monkeypatch.setenv("HIAR_CACHE", str(tmp_path / cache))
        text = CachedText(base)
        if cache == "together":
            text.encode(lines)
        found.append(text.encode([lines[5]]))
    assert torch.equal(*found)


@pytest.fixture
def loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A list that grows by a base each time its text encoder is loaded; the cache of embeddings is empty."""
    loaded: list[Path] = []

    def load(base: Path, *arguments: Any) -> TextEncoder:
        loaded.append(base)
        return load_text_encoder(base, *arguments)

    monkeypatch.setenv("HIAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HIAR_TRACKING", "off")
    monkeypatch.setattr(embeddings, "load_text_encoder", load)
    return loaded


@pytest.fixture
def with_forty_prompts(params: Params, tmp_path: Path) -> Params:
    """The experiment, with forty prompts of its own."""
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"A red fox number {number} trots along a snowy ridge.\n" for number in range(40)))
    return params.model_copy(update={"world": params.world.model_copy(update={"prompts": path})})


def test_a_training_loads_the_text_encoder_once_for_many_prompts(
    chain: Path, with_forty_prompts: Params, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder is as large as the trained network; embeddings do not depend on the samples per request."""
    monkeypatch.setattr(distill, "AHEAD", 4)
    teacher = load_generator(chain / "artifacts" / "seed-0" / "teacher")
    teacher = replace(teacher, card=teacher.card.model_copy(update={"world": with_forty_prompts.world}))
    spec = with_forty_prompts.distill
    last = spec.all_steps * spec.batch
    assert (last, spec.critic_rollouts) == (10, 0)
    prompts, first = distill.Prompts(teacher, 0, spec), FIRST_CLIP["distill"]
    found = [prompts(range(first + number, first + number + 2)) for number in range(0, last, 2)]
    assert len(loads) == 3
    held = Embeddings(next((cache_folder() / "embeddings").iterdir()))
    lines = open_world(with_forty_prompts.world).prompts(seed=0, first=first, count=40)  # all, in the order of drawing
    assert [line in held for line in lines] == [number < last for number in range(40)]  # none that is never drawn
    assert torch.equal(torch.cat(found), teacher.embed(lines[:last]))
    teacher.embed_nothing()  # guidance asks for it at every step
    teacher.embed([""])
    assert len(loads) == 3


def test_pairs_and_samples_load_the_text_encoder_once(
    chain: Path, params: Params, loads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any batch size."""
    made = chain / "artifacts" / "seed-0"
    tree = merge(params.model_dump(mode="json"), {"pairs": {"count": 4, "batch": 1, "shard": 2}})
    shutil.copytree(made / "teacher", tmp_path / "artifacts" / "seed-0" / "teacher")
    _run("pairs", parse_params(tree, Path("few")), tmp_path, seed=0)
    assert len(loads) == 1
    monkeypatch.setattr(prompted, "BATCH", 1)
    prompts = [f"Rain on the window of tram {number}." for number in range(3)]
    sample_prompts(Request(made / "distill" / "hiar", prompts, 9), tmp_path / "out", save_latents=False)
    assert len(loads) == 2
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 3


def test_prompts_are_the_lines_of_the_file_for_their_purpose(params: Params, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\n\ntwo\nthree\n")
    (tmp_path / "sample.txt").write_text("a\nb\n")
    world = params.world.model_copy(update={"prompts": tmp_path / "train.txt"})
    sample = params.sample.model_copy(update={"prompts": tmp_path / "sample.txt"})
    changed = params.model_copy(update={"world": world, "sample": sample})
    drawn = open_world(world).prompts(seed=0, first=FIRST_CLIP["pairs"] + 1, count=3)
    assert drawn == ["two", "three", "one"]
    assert sample_world(changed).prompts(seed=5, first=FIRST_CLIP["sample"], count=3) == ["a", "b", "a"]
    without = open_world(params.world.model_copy(update={"prompts": None}))
    with pytest.raises(UserError, match=r"world\.prompts: is null; name a text file"):
        without.prompts(seed=0, first=FIRST_CLIP["pairs"], count=1)


def test_repeated_prompts_of_a_file_are_kept_once(params: Params, tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    world = open_world(params.world.model_copy(update={"prompts": path}))
    assert world.kept(7)[0] == 7
    path.write_text("A fox.\nA hare in the snow.\nA fox.\n")
    several, bytes_of_all = world.kept(7)
    assert (several, world.kept(1)[0]) == (2, 1)
    assert world.kept(1)[1] == bytes_of_all // 2


def test_a_plan_may_be_the_first_to_ask_for_the_tiny_base(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the meta device, as in a plan, it is still made with real numbers."""
    monkeypatch.setenv("HIAR_CACHE", str(tmp_path))
    world = open_world(params.world.model_copy(update={"base": Path("tiny")}))
    with torch.device("meta"):
        assert next(world.outline("codec", params).parameters()).is_meta
    assert world.base is not None
    assert all(value.isfinite().all() for value in load_transformer(world.base / "transformer").state_dict().values())


def test_student_and_critic_read_a_prompt_file_in_different_orders(params: Params, tmp_path: Path) -> None:
    """Each pass has all lines in a shuffled order, different for each pass, each seed, and the critic."""
    lines = [f"line {number}" for number in range(40)]
    (tmp_path / "train.txt").write_text("".join(f"{line}\n" for line in lines))
    world = open_world(params.world.model_copy(update={"prompts": tmp_path / "train.txt"}))

    def turn(purpose: str, number: int, seed: int = 0) -> list[str]:
        return world.prompts(seed=seed, first=FIRST_CLIP[purpose] + 40 * number, count=40)

    orders = [turn("distill", 0), turn("distill", 1), turn("distill", 0, seed=1), turn("critic", 0), lines]
    assert all(sorted(order) == sorted(lines) for order in orders)
    assert len({*map(tuple, orders)}) == len(orders)
    across = world.prompts(seed=0, first=FIRST_CLIP["distill"] + 30, count=20)
    assert across == [*orders[0][30:], *orders[1][:10]]  # each number has its line, whatever range is requested
    assert turn("pairs", 1) == turn("sample", 0) == turn("validation", 0) == lines


@pytest.mark.parametrize(("given", "used"), [(None, NEGATIVE_PROMPT), ("", ""), ("blurred", "blurred")])
def test_the_negative_prompt_defaults_to_wans_and_may_be_empty(given: str | None, used: str, params: Params) -> None:
    world = params.world.model_copy(update={"negative_prompt": given})
    assert open_world(world).negative_prompt == used
