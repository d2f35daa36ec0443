"""Files that are no checkpoint of Wan, or not the requested one: one error line, and nothing is written."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from shutil import disk_usage
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiar.errors import UserError
from hiar.io.free import require_room
from hiar.worlds.wan.formats.autoencoder import open_autoencoder
from hiar.worlds.wan.formats.configs import checked
from hiar.worlds.wan.formats.loading import load_transformer
from hiar.worlds.wan.formats.sources import open_source
from hiar.worlds.wan.formats.stored import Stored, read_json, read_sharded, stored_state
from hiar.worlds.wan.formats.text_encoder import open_text_encoder
from hiar.worlds.wan.formats.writing import write_diffusers, write_original, write_student

Weights = dict[str, Tensor]
Write = Callable[[Path, Weights], None]


class Code:
    """An object whose pickle runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def refused(message: str, act: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def good(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    """A good source in each layout."""
    folder = tmp_path_factory.mktemp("good")
    torch.save({"generator": tiny.weights}, folder / "student.pt")
    found = open_source(folder / "student.pt", base=tiny.config)
    for name in ("diffusers", "original"):
        (folder / name).mkdir()
    write_diffusers(found.tensors, found.config, folder / "diffusers", shard=400_000)
    write_original(found.tensors, found.config, folder / "original", shard=400_000)
    return folder


def without(weights: Weights, *ends: str) -> Weights:
    return {name: one for name, one in weights.items() if not name.endswith(ends)}


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (lambda w: {"generator": without(w, ".norm_q.weight", "head.bias")},
         r"generator: lacks 7 tensors \((blocks\.\d\.(self|cross)_attn\.norm_q\.weight, ){5}\.{3}\); it is incomplete"),
        (lambda w: {"generator": without(w, "head.modulation")},
         r"lacks 1 tensor \(head\.modulation\); it is incomplete"),
        (lambda w: {"generator": w | {"model.img_emb.proj.0.bias": torch.zeros(2)}},
         r"has a surplus of 1 tensor \(img_emb\.proj\.0\.bias\); name a checkpoint of the same model"),
        (lambda w: {"generator": w | {"blocks.0.ffn.2.weight": torch.zeros(96, 80)}},
         r"blocks\.0\.ffn\.2\.weight = 96x80: should be 96x160; name a checkpoint of the same model"),
        (lambda w: {"generator": {n: o for n, o in w.items() if not n.startswith("blocks.2.")}},
         r"generator: num_layers = 2: the base has 3; name a checkpoint of the base's size, or another base"),
        (lambda w: {"generator": w | {"time_embedding.0.weight": torch.zeros(96, 32)}},
         r"freq_dim = 32: the base has 64"),
        (lambda w: {"critic": w, "step": 3}, r"\.pt: holds critic, step, but no generator; name a checkpoint"),
        (lambda w: {"generator": w, "generator_ema": w, "critic": w},
         r"holds generator, generator_ema, critic: several sets of weights; choose weights = generator or"),
        (lambda w: {"generator": {}}, r"holds generator, but no generator"),
        (lambda w: {"generator": {**w, "step": 3}},
         r"generator: step is not a dense tensor but int; save the weights alone"),
        (lambda w: {"generator": {**w, "head.head.bias": torch.zeros(16, dtype=torch.int64)}},
         r"head\.head\.bias is of type torch\.int64; take a checkpoint in F32, F16, BF16"),
        (lambda w: {"generator": {"a.weight": torch.zeros(2)}}, r"holds no transformer of Wan \(but a\.weight\)"),
        (lambda w: {"generator": {"a\nb": torch.zeros(2)}}, r"holds a tensor named 'a\\nb'; name a checkpoint of Wan"),
        (lambda w: {"generator": {"a": torch.zeros(2, device="meta")}}, r"a is not a dense tensor"),
        (lambda w: {"generator": {"a": torch.zeros(2, 2).to_sparse()}}, r"a is not a dense tensor"),
        (lambda w: {"a\nb": w, 3: w}, r"holds 'a\\nb', 3, but no generator"),
        (lambda w: torch.zeros(3), r"\.pt: holds Tensor, not state dicts"),
    ],
)  # fmt: skip
def test_students_that_do_not_fit_are_refused(
    tiny, tmp_path: Path, held: Callable[[Weights], Any], message: str
) -> None:  # type: ignore[no-untyped-def]
    torch.save(held(tiny.weights), tmp_path / "student.pt")
    refused(message, lambda: open_source(tmp_path / "student.pt", base=tiny.config))


def test_missing_sets_of_weights_are_refused(tiny, good: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    message = r"student\.pt: weights = generator_ema: it holds generator; choose weights = generator"
    refused(message, lambda: open_source(good / "student.pt", weights="generator_ema", base=tiny.config))
    refused(r"weights = generator: .*is a folder", lambda: open_source(good / "original", weights="generator"))
    save_file(tiny.weights, tmp_path / "one.safetensors")
    refused(r"is safetensors, which holds one", lambda: open_source(tmp_path / "one.safetensors", weights="generator"))


def test_a_student_of_unknown_head_size_needs_a_base(good: Path) -> None:
    refused(
        r"dim = 96: is not a multiple of Wan's 128 a head; name its --base", lambda: open_source(good / "student.pt")
    )


@pytest.mark.parametrize(
    ("end", "fields"),
    [
        ("text_embedding.0.weight", "text_dim"),
        ("time_embedding.0.weight", "freq_dim"),
        ("blocks.0.ffn.0.weight", "ffn_dim"),
        ("head.head.weight", "out_channels"),
        ("patch_embedding.weight", "dim, in_channels, out_channels, patch_size"),
    ],
)
def test_a_student_without_the_tensors_that_tell_its_sizes_is_refused(
    tiny, tmp_path: Path, end: str, fields: str
) -> None:  # type: ignore[no-untyped-def]
    torch.save({"generator": without(tiny.weights, end)}, tmp_path / "student.pt")
    refused(rf"lacks the tensors that show {fields}; ", lambda: open_source(tmp_path / "student.pt"))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def cut_save(path: Path, held: object, zipped: bool) -> None:
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    cut(path, 10**6)


def cut_save_file(path: Path, weights: Weights, size: int) -> None:
    save_file(weights, path)
    cut(path, size)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p, w: None, r"no such file; name a checkpoint"),
        (lambda p, w: p.write_bytes(b""), r"is empty; copy or download it again"),
        (lambda p, w: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
         r"is a pointer of Git LFS, not the file itself; fetch that with git lfs pull"),
        (lambda p, w: p.write_text("<!DOCTYPE html> not found"), r"is neither safetensors nor a file of torch\.save"),
        (lambda p, w: p.write_bytes(b"PK\x03\x04" + bytes(100)), r"is truncated or damaged"),
        (lambda p, w: cut_save(p, {"generator": w}, zipped=True), r"is truncated or damaged"),
        (lambda p, w: cut_save(p, w, zipped=False), r"is truncated or damaged"),
        (lambda p, w: cut_save_file(p, w, 10**6), r"is truncated or not a safetensors file"),
        (lambda p, w: cut_save_file(p, w, 1000), r"is truncated or not a safetensors file"),
        (lambda p, w: save_file(w | {"head.head.bias": torch.zeros(16, dtype=torch.uint8)}, p),
         r"head\.head\.bias is of type U8"),
        (lambda p, w: os.mkfifo(p), r"is not a regular file; name a checkpoint"),
        (lambda p, w: p.mkdir(), r"is neither a folder of diffusers .* nor of the original Wan .*; name such a folder"),
    ],
)  # fmt: skip
def test_files_that_are_no_checkpoints_are_refused(tiny, tmp_path: Path, write: Write, message: str) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path / "student.pt", tiny.weights)
    refused(rf"student\.pt: {message}", lambda: open_source(tmp_path / "student.pt", base=tiny.config))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_never_runs(tiny, tmp_path: Path, zipped: bool) -> None:  # type: ignore[no-untyped-def]
    path, ran = tmp_path / "student.pt", tmp_path / "ran"
    torch.save({"generator": tiny.weights, "args": Code(ran)}, path, _use_new_zipfile_serialization=zipped)
    message = (
        r"student\.pt: holds more than tensors.*, and code of a checkpoint is never run; save its state dict alone"
    )
    for read in (open_source, open_text_encoder, open_autoencoder):
        refused(message, lambda read=read: read(path))  # type: ignore[misc]
    assert not ran.exists()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


INDEX = "diffusion_pytorch_model.safetensors.index.json"
SECOND = "diffusion_pytorch_model-00002-of-00005.safetensors"


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / SECOND).unlink(), rf"lacks 1 of 5 files \({SECOND}\); copy or download it again"),
        (lambda f: (f / INDEX).unlink(), rf"{INDEX}: is missing, though parts that it lists"),
        (lambda f: cut(f / SECOND, 10**5), rf"{SECOND}: is truncated"),
        (lambda f: save_file({"a": torch.zeros(2)}, f / SECOND), rf"{SECOND}: does not hold what {INDEX} says"),
        (lambda f: edit(f / INDEX, weight_map=json.loads((f / INDEX).read_text())["weight_map"] | {"a": SECOND}),
         rf"{SECOND}: does not hold what {INDEX} says \(a\)"),
        (lambda f: save_file(load_file(f / SECOND) | {"a": torch.zeros(2)}, f / SECOND),
         rf"{SECOND}: does not hold what {INDEX} says \(a\)"),
        (lambda f: edit(f / INDEX, weight_map={"a": "../a.safetensors"}), r"weight_map: should name a file in its"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config\.json: should hold a JSON object, not list"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: is not JSON"),
        (lambda f: edit(f / "config.json", num_layers=30),
         r"num_layers = 3: its config\.json says 30; its files are not"),
        (lambda f: edit(f / "config.json", num_layers="3"), r"config\.json: num_layers = '3': "),
        (lambda f: edit(f / "config.json", eps=-1), r"config\.json: eps = -1: "),
        (lambda f: edit(f / "config.json", model_type="i2v", image_dim=1280),
         r"config\.json: (model_type = 'i2v'|image_dim = 1280): .*name a text-to-video transformer of Wan 2\.1"),
    ],
)  # fmt: skip
def test_incomplete_or_inconsistent_folders_are_refused(
    good: Path, tmp_path: Path, layout: str, damage, message: str
) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / layout
    shutil.copytree(good / layout, folder)
    damage(folder)
    refused(message, lambda: load_transformer(folder))


def test_impossible_file_names_are_refused() -> None:
    for read in (open_source, open_text_encoder, open_autoencoder):
        refused(r"a: cannot be read \(File name too long\); fix", lambda read=read: read(Path("a" * 300)))  # type: ignore[misc]


def test_a_missing_file_of_a_folder_is_named(tmp_path: Path) -> None:
    refused(r"/config\.json: no such file; copy or download it again", lambda: read_json(tmp_path / "config.json"))
    refused(r"/model\.safetensors: no such file; copy or download", lambda: read_sharded(tmp_path, "model"))


def test_folders_of_other_models_are_refused(good: Path, tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    save_file({"patch_embedding.bias": torch.zeros(2)}, tmp_path / "diffusion_pytorch_model.safetensors")
    refused(r"_class_name = 'AutoencoderKLWan': should be WanTransformer3DModel", lambda: open_source(tmp_path))
    for name in ("transformer", "transformer_2"):
        (tmp_path / name).mkdir()
    refused(r"has two transformers; name .*/transformer or .*/transformer_2 itself", lambda: open_source(tmp_path))
    other = tiny.config | {"num_attention_heads": 2, "attention_head_dim": 48}
    message = r"num_attention_heads = 4: the base has 2; name a checkpoint of the base's kind"
    refused(message, lambda: open_source(good / "diffusers", base=other))
    refused(r"num_layers = 3: the base has 40", lambda: open_source(good / "original", base=checked({}, "base")))
    for layout, changes, line in (
        ("original", {"num_heads": 5}, r"num_heads = 5: should divide dim = 96; fix it"),
        ("diffusers", {"attention_head_dim": 25}, r"attention_head_dim = 25: input should be a multiple of 2"),
    ):
        shutil.copytree(good / layout, tmp_path / layout)
        edit(tmp_path / layout / "config.json", **changes)
        refused(line, lambda layout=layout: open_source(tmp_path / layout))  # type: ignore[misc]


def test_tensor_subclasses_are_refused() -> None:
    """Such as the tensors of a sharded training, of which each process holds a part."""

    class Sharded(Tensor):
        pass

    refused(
        r"there: a is not a dense tensor but Sharded; save the weights alone",
        lambda: stored_state({"a": torch.zeros(2).as_subclass(Sharded)}, "there"),
    )


def test_a_checkpoint_saved_from_a_gpu_is_read_without_one(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        torch.save({"generator": tiny.weights}, tmp_path / "student.pt")
        torch.save({"generator": tiny.weights}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("student.pt", "old.pt"):
        found = open_source(tmp_path / name, base=tiny.config).tensors["proj_out.bias"].load()
        assert torch.equal(found, tiny.weights["head.head.bias"])


def test_too_little_disk_space_is_refused_before_anything_is_written(tiny, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def never() -> Tensor:
        raise AssertionError("read")

    huge = {"proj_out.bias": Stored((10**15,), torch.float32, never)}
    (tmp_path / "out").mkdir()
    message = r"needs 4000000 GB, [0-9.]+ GB are free; free some space or choose another place"
    refused(message, lambda: write_diffusers(huge, tiny.config, tmp_path / "out"))
    refused(message, lambda: write_original(huge, tiny.config, tmp_path / "out"))
    refused(message, lambda: write_student({"generator": huge}, tmp_path / "out" / "student.pt"))
    refused(r"GB are free; free some", lambda: require_room(tmp_path / "a" / "b", int(1.5 * disk_usage(tmp_path).free)))
    require_room(tmp_path / "a" / "b", disk_usage(tmp_path).free // 2)
    assert not list((tmp_path / "out").iterdir())


def test_weights_that_do_not_fit_in_memory_are_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied: in half precision nearly half as much; as stored, nothing."""
    folder = good / "diffusers"
    half = sum(one.nbytes for one in load_transformer(folder, torch.bfloat16).state_dict().values())
    for dtype, size in ((torch.bfloat16, half), (None, 0)):
        monkeypatch.setattr("hiar.io.free.free_bytes", lambda _, size=size: size)
        load_transformer(folder, dtype)
    monkeypatch.setattr("hiar.io.free.free_bytes", lambda _: half - 1)
    message = r"diffusers: takes .* of memory, .* are free; end other programs"
    refused(message, lambda: load_transformer(folder, torch.bfloat16))


def test_a_failed_write_leaves_no_file(good: Path, tmp_path: Path) -> None:
    found = open_source(good / "diffusers")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        refused(r"file too large; raise the limit", lambda: write_diffusers(found.tensors, found.config, tmp_path))
        student = tmp_path / "student.pt"
        refused(r"file too large; raise the limit", lambda: write_student({"generator": found.tensors}, student))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(tiny, good: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken = tiny.weights | {"head.head.bias": torch.full((16,), torch.nan)}
    torch.save({"generator": broken}, tmp_path / "student.pt")
    found = open_source(tmp_path / "student.pt", base=tiny.config)
    (tmp_path / "out").mkdir()
    refused(
        r"proj_out\.bias: 16 of 16 values are not finite",
        lambda: write_diffusers(found.tensors, found.config, tmp_path / "out"),
    )
    shutil.copytree(good / "diffusers", tmp_path / "in")
    path = tmp_path / "in" / SECOND
    held = load_file(path)
    name = next(iter(held))
    save_file(held | {name: torch.full_like(held[name], torch.inf)}, path)
    refused(rf"{re.escape(name)}: .* not finite", lambda: load_transformer(tmp_path / "in"))
    refused(r"head\.head\.bias: 16 of", lambda: write_student({"generator": found.tensors}, tmp_path / "out" / "a.pt"))
    assert not list((tmp_path / "out").iterdir())
