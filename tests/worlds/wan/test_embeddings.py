"""The cache of embeddings: equal to the encoder's, computed once, resumed, shared, and read row by row."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import relative_error

from hiar.errors import UserError
from hiar.io import fingerprints
from hiar.io.progress import Progress
from hiar.io.shards import write_shard
from hiar.worlds.interface import TEXT
from hiar.worlds.wan import CachedText, embeddings
from hiar.worlds.wan.embeddings import Embeddings, embed, embedding_bytes
from hiar.worlds.wan.references import refer
from hiar.worlds.wan.text import MAX_TOKENS, TextEncoder, load_text_encoder, pad

PROMPTS = [f"A red panda number {number} climbs {'a mossy tree ' * (number % 7)}" for number in range(20)]
FLOAT = torch.float32


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SHARD", 8)


@pytest.fixture
def text(base: Path, tmp_path: Path) -> Path:
    """A copy of a base model's text encoder, to be damaged."""
    return shutil.copytree(base, tmp_path / "text", ignore=shutil.ignore_patterns("vae", "transformer"))


@pytest.fixture(scope="module")
def filled(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of all prompts, to be copied."""
    cache = tmp_path_factory.mktemp("filled") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "SHARD", 8)
        embed(PROMPTS, base, cache, FLOAT)
    return cache


@pytest.fixture
def cache(filled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(filled, tmp_path / "cache")


def _corrupt_unnoticed(path: Path) -> None:
    """Corrupt a file, keeping its size and modification time."""
    state = path.stat()
    path.write_bytes(bytes(state.st_size))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def _key_counts(folder: Path) -> Counter[str]:
    """How often each key is in the shards of a folder."""
    keys: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            keys.update(file.keys())
    return keys


class Killed(Exception):
    pass


class Dying(list[str]):
    """Prompts whose second iteration is killed after ``after`` of them."""

    def __init__(self, prompts: list[str], after: int) -> None:
        super().__init__(prompts)
        self.after, self.passes = after, 0

    def __iter__(self) -> Iterator[str]:
        self.passes += 1
        for number, prompt in enumerate(list.__iter__(self)):
            if self.passes == 2 and number == self.after:
                raise Killed
            yield prompt


def test_cached_embeddings_equal_the_encoders(base: Path, filled: Path) -> None:
    wanted = [PROMPTS[13], PROMPTS[2], PROMPTS[13], PROMPTS[19]]
    found = embed(PROMPTS, base, filled, FLOAT)
    rows = found.read(wanted)
    order = [*range(0, 20, 3), *range(1, 20, 3), *range(2, 20, 3)]  # alternating between shards
    assert torch.equal(found.read([PROMPTS[number] for number in order]), found.read(PROMPTS)[order])
    encoder = load_text_encoder(base)
    assert rows.shape == (4, MAX_TOKENS, encoder.dim)
    assert relative_error(rows, pad(encoder.rows(wanted))) < 1e-6
    lengths = [len(one) for one in encoder.rows(wanted)]
    assert all(row[length - 1].any() and not row[length:].any() for row, length in zip(rows, lengths, strict=True))


def test_only_valid_rows_are_stored_in_the_requested_dtype(base: Path, tmp_path: Path) -> None:
    found = embed(PROMPTS[:3], base, tmp_path, torch.bfloat16)
    assert found.read(PROMPTS[:1]).dtype == torch.bfloat16
    (path,) = found.folder.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        held = {tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    lengths = [len(rows) for rows in load_text_encoder(base).rows(PROMPTS[:3])]
    assert held == {(length, 32) for length in lengths}


def test_the_size_of_embeddings_is_estimated_before_any_is_made(base: Path, tmp_path: Path) -> None:
    """To a token per prompt if tokenizer and prompts exist; else as if each had all the tokens that Wan reads."""
    prompts = [
        "A fox.",
        "A red fox trots along a snowy ridge.",
        "Rain &amp; wind, an old tram in the night, no people.",
    ]
    embed(prompts, base, tmp_path, torch.bfloat16)
    (shard,) = tmp_path.rglob("*.safetensors")
    with safe_open(shard, framework="pt") as file:
        rows = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (not a mapping)
    width, made = rows[0].shape[1] * rows[0].element_size(), sum(row.nbytes for row in rows)
    estimate = embedding_bytes(base, prompts)
    assert made <= len(prompts) * estimate < made + len(prompts) * width
    assert embedding_bytes(base, []) == MAX_TOKENS * width
    assert embedding_bytes(tmp_path / "Wan2.1-T2V-1.3B", prompts) == 512 * 4096 * 2


def test_the_size_of_embeddings_is_estimated_from_prompts_of_the_whole_file(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose later lines may be longer than the first ones."""
    short, long = ["a fox"] * 4, [PROMPTS[6]] * 4
    monkeypatch.setattr(embeddings, "SAMPLE", 4)
    mixed, low, high = (embedding_bytes(base, prompts) for prompts in ([*short, *long], short, long))
    assert low < mixed < high


def test_the_encoder_is_loaded_only_for_missing_prompts(text: Path, cache: Path) -> None:
    first = embed(PROMPTS, text, cache, FLOAT).read(PROMPTS)
    _corrupt_unnoticed(text / "text_encoder" / "model.safetensors")
    assert torch.equal(embed(PROMPTS, text, cache, FLOAT).read(PROMPTS), first)
    with pytest.raises(UserError, match=r"text_encoder/model.safetensors: is truncated"):
        embed([*PROMPTS, "another"], text, cache, FLOAT)


def test_an_encoder_that_a_checkpoint_refers_to_is_not_hashed_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published one has 11 to 23 GB."""
    monkeypatch.setenv("HIAR_CACHE", str(tmp_path / "cache"))
    read = Counter[Path]()
    parts = fingerprints._parts
    monkeypatch.setattr(fingerprints, "_parts", lambda path: read.update([path]) or parts(path))
    refer(tmp_path / "checkpoint", base, TEXT)
    assert read[base / "text_encoder" / "model.safetensors"] == 1
    CachedText(base).prepare(PROMPTS[:1])
    assert set(read.values()) == {1}


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, FLOAT])
def test_without_a_gpu_an_encoder_stored_in_bf16_is_not_doubled(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype
) -> None:
    monkeypatch.setenv("HIAR_CACHE", str(tmp_path / "cache"))
    path = text / "text_encoder" / "model.safetensors"
    save_file({name: weight.to(stored) for name, weight in load_file(path).items()}, path, {"format": "pt"})
    cached = CachedText(text)
    cached.prepare(PROMPTS[:1])
    computed = torch.bfloat16 if stored == torch.bfloat16 else FLOAT
    assert cached.known is not None
    assert cached.known.read(PROMPTS[:1]).dtype == computed
    assert torch.equal(cached.encode(PROMPTS[:1]), pad(load_text_encoder(text, dtype=computed).rows(PROMPTS[:1])))


def test_embeddings_of_one_device_are_not_read_for_another(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may have another type there."""
    monkeypatch.setenv("HIAR_CACHE", str(tmp_path / "cache"))
    cached = CachedText(base)
    cached.prepare(PROMPTS[:1])
    known = cached.known
    assert cached.to("cpu").known is known is not None
    assert cached.to("meta").known is None
    assert cached.device.type == "meta"


def test_prompts_that_were_not_announced_are_embedded_when_they_are_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIAR_CACHE", str(tmp_path / "cache"))
    cached = CachedText(base)
    cached.prepare(PROMPTS[:1])
    found = cached.encode(PROMPTS[:2])
    assert torch.equal(
        found, pad(load_text_encoder(base).rows(PROMPTS[:1]) + load_text_encoder(base).rows(PROMPTS[1:2]))
    )


def test_another_encoder_tokenizer_or_dtype_has_its_own_cache(text: Path, cache: Path) -> None:
    folders = {embed(PROMPTS[:1], text, cache, dtype).folder for dtype in (FLOAT, torch.bfloat16)}
    config = text / "text_encoder" / "config.json"
    config.write_text(config.read_text() + "\n")
    folders.add(embed(PROMPTS[:1], text, cache, FLOAT).folder)
    tokenizer = text / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    folders.add(embed(PROMPTS[:1], text, cache, FLOAT).folder)
    assert len(folders) == 4


def test_interrupted_embedding_is_resumed(base: Path, filled: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        embed(Dying(PROMPTS, after=18), base, tmp_path, FLOAT)
    (folder,) = (path for path in (tmp_path / "embeddings").iterdir() if path.is_dir())
    debris = folder / ".0123.safetensors.tmp"
    debris.write_bytes(b"half a shard")
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert _key_counts(folder).total() == 16  # two shards of eight; two prompts are lost
    found = embed(PROMPTS, base, tmp_path, FLOAT)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert not debris.exists()
    assert set(_key_counts(folder).values()) == {1}
    assert torch.equal(found.read(PROMPTS), Embeddings(next(filled.glob("embeddings/*/"))).read(PROMPTS))


def test_prompts_are_batched_by_length_and_their_order_does_not_change_the_shard(base: Path, tmp_path: Path) -> None:
    encoder, lengths = load_text_encoder(base), []
    rows = encoder.rows
    encoder.rows = lambda prompts: lengths.extend(map(len, prompts)) or rows(prompts)  # type: ignore[method-assign]
    for order in (PROMPTS, PROMPTS[::-1]):
        with Progress("embed", len(PROMPTS)) as progress:
            embeddings._write(tmp_path, encoder, order, 4, progress)
    assert lengths == sorted(map(len, PROMPTS)) * 2
    assert len(list(tmp_path.iterdir())) == 1


def test_several_at_once_share_the_work(base: Path, filled: Path, tmp_path: Path) -> None:
    lists = [PROMPTS, PROMPTS[::-1], PROMPTS[5:] * 2]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda prompts: embed(prompts, base, tmp_path, FLOAT), lists))
    held = _key_counts(found[0].folder)
    assert len(held) == len(PROMPTS)
    assert set(held.values()) == {1}
    rows = [one.read(PROMPTS[5:]) for one in found]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert relative_error(rows[0], Embeddings(next(filled.glob("embeddings/*/"))).read(PROMPTS[5:])) < 1e-6


def test_of_concurrent_calls_for_the_same_prompts_one_loads_an_encoder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the processes of a stage, each of which has memory for one encoder of 11 GB at best."""
    monkeypatch.setattr(embeddings, "SHARD", 1)
    loaded = []

    def load(*arguments: Any) -> TextEncoder:
        loaded.append(arguments)
        return load_text_encoder(*arguments)

    monkeypatch.setattr(embeddings, "load_text_encoder", load)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: embed(PROMPTS, base, tmp_path, FLOAT), range(3)))
    assert len(loaded) == 1
    assert all(prompt in one for one in found for prompt in PROMPTS)


def test_only_the_rows_asked_for_are_read(base: Path, cache: Path) -> None:
    found = embed(PROMPTS, base, cache, FLOAT)
    before = found.read(PROMPTS[:1])
    for path in found.folder.glob("*.safetensors"):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")  # of the tensors, after the header
        places = json.loads(data[8:start])
        first, end = places.get(embeddings._key(PROMPTS[0]).hex(), {"data_offsets": (0, 0)})["data_offsets"]
        kept = data[start + first : start + end]
        path.write_bytes(data[:start] + bytes(first) + kept + bytes(len(data) - start - end))
    assert torch.equal(found.read(PROMPTS[:1]), before)
    with pytest.raises(UserError, match=r"^[^\n]*: is corrupt \(a checksum differs\); delete it, [^\n]*again$"):
        found.read(PROMPTS[1:2])


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_shard_is_refused_in_one_line_and_deleting_it_helps(base: Path, cache: Path, size: int) -> None:
    path = sorted(cache.glob("embeddings/*/*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"^[^\n]*: is truncated or not a shard \([^\n]*\); delete it, [^\n]*again$"):
        embed(PROMPTS, base, cache, FLOAT)
    write_shard(path, {"00": torch.zeros(1)}, {"01": ""})
    with pytest.raises(UserError, match=r"its header belongs to another shard\); delete it"):
        Embeddings(path.parent)
    path.unlink()
    assert embed(PROMPTS, base, cache, FLOAT).read(PROMPTS).isfinite().all()


def test_missing_embeddings_are_refused_in_one_line(base: Path, cache: Path) -> None:
    found = embed(PROMPTS, base, cache, FLOAT)
    assert "another" not in found
    assert "a ?" in embed(["a ?"], base, cache, FLOAT)
    assert "a \ud800" not in embed(["a ?"], base, cache, FLOAT)  # not valid text, refused by the encoder
    with pytest.raises(UserError, match=r"has no embedding of prompt 'another'; embed it first$"):
        found.read(["another"])
    for path in found.folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match=r"^[^\n]*safetensors: cannot be read \(No such file[^\n]*\); [^\n]*$"):
        found.read(PROMPTS[:1])
