"""Checkpoints of Wan in and out: every tensor keeps its bits, and the golden weights compute the golden forwards."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import relative_error
from torch import Tensor

from hiar.worlds.wan.exchange import describe
from hiar.worlds.wan.formats.checking import transformer_shapes
from hiar.worlds.wan.formats.configs import checked, original_config
from hiar.worlds.wan.formats.loading import load_transformer
from hiar.worlds.wan.formats.names import to_original
from hiar.worlds.wan.formats.sources import Found, open_source
from hiar.worlds.wan.formats.stored import Stored
from hiar.worlds.wan.formats.writing import write_diffusers, write_model, write_original, write_student
from hiar.worlds.wan.text import MAX_TOKENS

PREFIXES = ("model", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def wrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as an FSDP training with activation checkpointing saves them."""
    inner = {name.replace("ffn.", "_checkpoint_wrapped_module.ffn."): value for name, value in weights.items()}
    return {f"model._fsdp_wrapped_module.{name}": value for name, value in inner.items()}


def same(ones: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether names, types and bits are equal."""
    return ones.keys() == others.keys() and all(
        one.dtype == others[name].dtype and torch.equal(one, others[name]) for name, one in ones.items()
    )


def loaded(found: Found) -> dict[str, Tensor]:
    return {name: one.load() for name, one in found.tensors.items()}


@pytest.fixture(scope="module")
def mixed(tiny) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    """The golden weights in bfloat16, except the norms."""
    return {name: one if "norm" in name else one.bfloat16() for name, one in tiny.weights.items()}


@pytest.fixture(scope="module")
def folder(tiny, mixed: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """mixed.pt, and the same in diffusers' layout in several files, in the original's, and as a student."""
    folder = tmp_path_factory.mktemp("formats")
    torch.save({"generator_ema": wrapped(mixed), "critic": {"step": 3}, "step": 7}, folder / "mixed.pt")
    found = open_source(folder / "mixed.pt", base=tiny.config)
    for name in ("diffusers", "original"):
        (folder / name).mkdir()
    write_diffusers(found.tensors, found.config, folder / "diffusers", shard=200_000)
    write_original(found.tensors, found.config, folder / "original")
    write_student({"generator": found.tensors, "generator_ema": found.tensors}, folder / "student.pt")
    return folder


def test_golden_weights_compute_the_golden_forwards(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source, out = tmp_path / "sf.pt", tmp_path / "transformer"
    torch.save({"generator_ema": wrapped(tiny.weights)}, source)
    found = open_source(source, weights="generator_ema", base=tiny.config)
    out.mkdir()
    write_diffusers(found.tensors, found.config, out)
    transformer = load_transformer(out)
    assert not transformer.training
    for name, velocity in tiny.golden.items():
        if name.startswith("bidirectional/velocity/"):
            timesteps = torch.full((2,), float(name.rsplit("/", 1)[1]))
            with torch.no_grad():
                (ours,) = transformer(tiny.golden["bidirectional/x"], timesteps, tiny.golden["text"], return_dict=False)
            assert relative_error(ours, velocity) < 2e-5
    write_student({"generator": open_source(out).tensors}, tmp_path / "back.pt")
    assert same(
        torch.load(tmp_path / "back.pt", weights_only=True)["generator"],
        {f"model.{name}": value for name, value in tiny.weights.items()},
    )


def test_every_layout_holds_the_same_bits(folder: Path, tiny, mixed: dict[str, Tensor]) -> None:  # type: ignore[no-untyped-def]
    expected = convert_wan_transformer_to_diffusers(dict(mixed))
    for name, kind in (("mixed.pt", "pt"), ("diffusers", "diffusers"), ("original", "wan"), ("student.pt", "pt")):
        weights = "generator" if name == "student.pt" else None
        found = open_source(folder / name, weights=weights, base=tiny.config)  # type: ignore[arg-type]
        assert (found.kind, found.config) == (kind, tiny.config)
        assert same(loaded(found), expected), name
    assert same(load_file(folder / "original" / "diffusion_pytorch_model.safetensors"), mixed)
    assert json.loads((folder / "original" / "config.json").read_text())["text_len"] == MAX_TOKENS
    student = torch.load(folder / "student.pt", weights_only=True)
    assert same(student["generator_ema"], {f"model.{name}": one for name, one in mixed.items()})


def test_diffusers_to_original_and_back(folder: Path, tmp_path: Path) -> None:
    first = open_source(folder / "diffusers")
    for name in ("original", "diffusers"):
        (tmp_path / name).mkdir()
    write_original(first.tensors, first.config, tmp_path / "original", shard=200_000)
    between = open_source(tmp_path / "original")
    write_diffusers(between.tensors, between.config, tmp_path / "diffusers", shard=200_000)
    theirs, ours = (
        {path.name: path.read_bytes() for path in (at / "diffusers").iterdir()} for at in (folder, tmp_path)
    )
    assert theirs == ours


def test_parameters_are_counted_whatever_their_types(folder: Path, mixed: dict[str, Tensor]) -> None:
    description = dict(describe(folder / "diffusers", None))
    assert description["transformer"].endswith(f", {sum(one.numel() for one in mixed.values()):,} parameters")
    assert description["stored"].endswith(" GB of bfloat16, float32")
    assert "SHA-256" not in description  # only files have one


def test_heads_of_files_are_those_that_diffusers_writes(folder: Path, tmp_path: Path) -> None:
    """Libraries refuse files whose header does not name their framework."""
    load_transformer(folder / "diffusers").save_pretrained(tmp_path)
    heads = []
    for path in (*tmp_path.glob("*.safetensors"), *folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            heads.append(file.metadata())
    assert len(heads) > 3
    assert all(head == heads[0] for head in heads)


def test_single_files_of_either_layout(tiny, mixed: dict[str, Tensor], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    expected = convert_wan_transformer_to_diffusers(dict(mixed))
    comfy = {f"model.diffusion_model.{name}": one for name, one in mixed.items()}
    for name, weights in (("original", mixed), ("diffusers", expected), ("comfy", comfy)):
        save_file(weights, tmp_path / f"{name}.safetensors")
        found = open_source(tmp_path / f"{name}.safetensors", base=tiny.config)
        assert found.kind == "safetensors"
        assert same(loaded(found), expected)


def test_the_legacy_format_bare_state_dicts_and_views(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    flat = torch.cat([one.flatten() for one in tiny.weights.values()])  # as FSDP stores them
    pieces = flat.split([one.numel() for one in tiny.weights.values()])
    views = {name: part.view_as(one) for part, (name, one) in zip(pieces, tiny.weights.items(), strict=True)}
    torch.save(wrapped(views), tmp_path / "bare.pt")
    torch.save({"model": views}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    expected = convert_wan_transformer_to_diffusers(dict(tiny.weights))
    for name in ("bare.pt", "old.pt"):
        found = open_source(tmp_path / name, weights="generator", base=tiny.config)
        (tmp_path / f"{name}.out").mkdir()
        write_diffusers(found.tensors, found.config, tmp_path / f"{name}.out")
        assert same(loaded(open_source(tmp_path / f"{name}.out")), expected)
        write_student({"generator": found.tensors}, tmp_path / "student.pt")
        assert (tmp_path / "student.pt").stat().st_size < 1.2 * 4 * flat.numel()


def test_a_file_stores_views_compactly_and_equal_sets_once(folder: Path, tmp_path: Path) -> None:
    """Whatever storage the tensor was a view of, and whatever its strides."""
    part, turned = torch.zeros(10**6)[:16], torch.arange(6.0).view(2, 3).t()
    views = {"proj_out.bias": part, "proj_out.weight": turned}
    stored = {name: Stored(tuple(one.shape), one.dtype, one.detach) for name, one in views.items()}
    write_model(stored, {}, tmp_path, "views")
    assert same(load_file(tmp_path / "views.safetensors"), {name: one.contiguous() for name, one in views.items()})
    write_student({"generator": stored}, tmp_path / "views.pt")
    assert (tmp_path / "views.pt").stat().st_size < 10_000
    found = open_source(folder / "diffusers")
    size = sum(one.nbytes for one in found.tensors.values())
    write_student({"generator": found.tensors, "generator_ema": found.tensors}, tmp_path / "both.pt")
    assert (tmp_path / "both.pt").stat().st_size < 1.2 * size
    index = json.loads((folder / "diffusers" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size


def test_a_students_file_is_mapped_and_not_read(folder: Path, tiny) -> None:  # type: ignore[no-untyped-def]
    """A file of 14B is larger than many machines' memory."""
    found = open_source(folder / "student.pt", weights="generator", base=tiny.config)
    mapped = {one.path for one in psutil.Process().memory_maps()}
    assert (found.kind, str(folder / "student.pt") in mapped) == ("pt", True)


def test_the_progress_of_writing_reaches_its_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In whole megabytes; the last one is not full."""
    stored = {"proj_out.bias": Stored((600_000,), torch.float32, lambda: torch.zeros(600_000))}
    write_model(stored, {}, tmp_path, "model")
    write_student({"generator": stored}, tmp_path / "student.pt")
    stderr = capfd.readouterr().err
    for name in (tmp_path.name, "student.pt"):
        assert f"writing {name}: 3/3 MB in" in stderr


def test_prefixes_in_every_order_keep_every_bit(tmp_path: Path) -> None:
    config = checked(
        {
            "patch_size": [1, 1, 1],
            "num_attention_heads": 1,
            "attention_head_dim": 6,
            "in_channels": 1,
            "out_channels": 1,
            "text_dim": 1,
            "freq_dim": 2,
            "ffn_dim": 1,
            "num_layers": 1,
        },
        "test",
    )
    shapes = transformer_shapes(config)
    weights = {str(to_original(name)): torch.randn(shape) for name, shape in shapes.items()}
    expected = convert_wan_transformer_to_diffusers(dict(weights))
    orders = [order for depth in range(4) for order in itertools.product(PREFIXES, repeat=depth)]
    for start in range(0, len(orders), len(weights)):
        turn = itertools.cycle([*orders[start:], *orders[:start]])  # another order for each tensor
        torch.save(
            {"generator": {".".join((*next(turn), name)): one for name, one in weights.items()}},
            tmp_path / "student.pt",
        )
        assert same(loaded(open_source(tmp_path / "student.pt", base=config)), expected)


def test_weights_are_loaded_as_stored_or_cast_like_diffusers(folder: Path, mixed: dict[str, Tensor]) -> None:
    theirs = WanTransformer3DModel.from_pretrained(folder / "diffusers", torch_dtype=torch.bfloat16)
    for name in ("diffusers", "original"):
        drawn = torch.get_rng_state()
        ours = load_transformer(folder / name, torch.bfloat16)
        assert torch.equal(torch.get_rng_state(), drawn)  # no weights are initialised first: of 14B, 56 GB
        assert same(ours.state_dict(), theirs.state_dict())
        assert all(
            torch.equal(one, other) for one, other in zip(ours.rope.buffers(), theirs.rope.buffers(), strict=True)
        )
    stored = load_transformer(folder / "diffusers").state_dict()
    types = {name: tensor.dtype for name, tensor in stored.items()}
    assert types["blocks.0.attn1.to_q.weight"] == types["proj_out.weight"] == torch.bfloat16
    assert types["blocks.0.attn1.norm_q.weight"] == torch.float32  # as stored
    assert types["blocks.0.scale_shift_table"] == torch.float32  # stored in bfloat16, kept in full precision
    assert torch.equal(stored["scale_shift_table"], mixed["head.modulation"].float())


def test_positions_reach_as_far_as_the_configuration_says(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "diffusers", tmp_path / "short")
    config = tmp_path / "short" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_max_seq_len": 96}))
    ours, theirs = load_transformer(tmp_path / "short"), WanTransformer3DModel.from_pretrained(tmp_path / "short")
    for one, other in zip(ours.rope.buffers(), theirs.rope.buffers(), strict=True):
        assert torch.equal(one, other)


def test_training_leaves_the_file_alone(folder: Path) -> None:
    before = open_source(folder / "original").tensors["proj_out.bias"].load().clone()
    with torch.no_grad():
        load_transformer(folder / "original").proj_out.bias.add_(1)
    assert torch.equal(open_source(folder / "original").tensors["proj_out.bias"].load(), before)


def test_file_permissions_follow_the_umask(tiny, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    found = open_source(folder / "diffusers")
    old = os.umask(0o027)
    try:
        write_diffusers(found.tensors, found.config, tmp_path, shard=10**6)
        write_student({"generator": found.tensors}, tmp_path / "student.pt")
    finally:
        os.umask(old)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o640"}


def test_a_sparse_14b_is_found_without_reading_it(
    write_sparse: Callable[[Path, Mapping[str, tuple[int, ...]]], None], tmp_path: Path
) -> None:
    config = checked({}, "14B")
    shapes = {str(to_original(name)): shape for name, shape in transformer_shapes(config).items()}
    names = list(shapes)
    places: dict[str, str] = {}
    for shard in range(6):
        file = f"diffusion_pytorch_model-{shard + 1:05d}-of-00006.safetensors"
        held = {name: shapes[name] for name in names[shard::6]}
        write_sparse(tmp_path / file, held)
        places |= dict.fromkeys(held, file)
    (tmp_path / "config.json").write_text(json.dumps(original_config(config)))
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = open_source(tmp_path)
    assert found.config == config
    assert len(found.tensors) == 1095
    assert sum(one.nbytes for one in found.tensors.values()) == 4 * 14_288_491_584
