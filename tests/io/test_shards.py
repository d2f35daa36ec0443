"""Shards: reading returns what was written, or raises a UserError."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiar.errors import UserError
from hiar.io.shards import StoredRows, complete_shards, join_shards, read_shard, shard_path, write_shard

TENSORS = {
    "b": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
    "a": torch.linspace(0, 1, 5).bfloat16(),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "u8": torch.arange(256, dtype=torch.uint8),
}
METADATA = {f"field {i}": str(i) for i in range(9)}


def test_a_shard_comes_back_as_it_was(tmp_path: Path) -> None:
    write_shard(tmp_path / "new" / "00000.safetensors", TENSORS, METADATA)
    back = read_shard(tmp_path / "new" / "00000.safetensors")
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_bytes_are_the_same_in_every_process_and_order(tmp_path: Path) -> None:
    program = f"""
import pathlib, sys, torch
from hiar.io.shards import write_shard
tensors = {{"a": torch.ones(3), "b": torch.zeros(2)}}
write_shard(pathlib.Path(sys.argv[1]), dict(reversed(tensors.items())), dict(reversed({METADATA!r}.items())))
"""
    write_shard(tmp_path / "here", {"a": torch.ones(3), "b": torch.zeros(2)}, METADATA)
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "there")], check=True, timeout=600)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = shard_path(tmp_path_factory.mktemp("shards"), 4)
    write_shard(path, TENSORS, METADATA)
    return path


@given(place=st.floats(0, 1, exclude_max=True))
@settings(max_examples=150)
def test_any_changed_bit_is_found(place: float, shard: Path) -> None:
    whole = shard.read_bytes()
    bit = int(place * len(whole) * 8)
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    other = shard.with_name("changed")
    other.write_bytes(changed)
    try:
        back = read_shard(other)
    except UserError as error:
        assert "run the stage" in str(error)
    else:  # a padding bit
        assert all(torch.equal(back[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize(
    ("old", "new"), [(b'field 8\\": \\"8', b'field 8\\": \\"7'), (b'"dtype":"F32"', b'"dtype":"I32"')]
)
def test_changed_metadata_and_dtypes_are_found(shard: Path, old: bytes, new: bytes) -> None:
    """With another dtype the same bytes would be other numbers."""
    whole = shard.read_bytes()
    assert whole.count(old) in (1, 2)
    other = shard.with_name("other")
    other.write_bytes(whole.replace(old, new))
    with pytest.raises(UserError, match=r"other: is corrupt \(its checksum differs\)"):
        read_shard(other)


@given(place=st.floats(0, 1, exclude_max=True))
@settings(max_examples=60)
def test_any_truncation_is_found(place: float, shard: Path) -> None:
    whole = shard.read_bytes()
    other = shard.with_name("cut")
    other.write_bytes(whole[: int(place * len(whole))])
    with pytest.raises(UserError, match=r"cut: is truncated .*delete it and run the stage"):
        read_shard(other)


def test_a_missing_shard_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"00003\.safetensors: no such shard; run the stage"):
        read_shard(shard_path(tmp_path, 3))


def test_only_whole_shards_count_as_complete(tmp_path: Path) -> None:
    for index in (3, 0, 1, 2):
        write_shard(shard_path(tmp_path, index), {"x": torch.full((64,), float(index))}, {})
    cut = shard_path(tmp_path, 1)
    cut.write_bytes(cut.read_bytes()[:-1])
    altered = shard_path(tmp_path, 2)
    altered.write_bytes(altered.read_bytes()[:-1] + b"\xff")
    (tmp_path / "notes.safetensors").write_bytes(b"")
    (tmp_path / ".00009.safetensors.tmp").write_bytes(b"")
    assert complete_shards(tmp_path) == [0, 3]


def test_joined_shards_equal_one_shard_of_all_rows(tmp_path: Path) -> None:
    """Byte for byte, with one shard in memory at a time."""
    rows = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0))
    paths = [shard_path(tmp_path, index) for index in range(3)]
    for path, part in zip(paths, rows.split((3, 3, 1)), strict=True):
        write_shard(path, {"latents": part, "others": part + 1}, {"first": "0"})
    write_shard(tmp_path / "whole.safetensors", {"latents": rows}, {})
    join_shards(paths, "latents", tmp_path / "joined.safetensors")
    assert (tmp_path / "joined.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert torch.equal(read_shard(tmp_path / "joined.safetensors")["latents"], rows)
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00001\.safetensors: is truncated"):
        join_shards(paths, "latents", tmp_path / "again.safetensors")
    assert not [*tmp_path.glob("*again*")]


def test_a_full_disk_leaves_the_old_shard(small_disk: Path) -> None:
    path = small_disk / "00000.safetensors"
    write_shard(path, {"x": torch.zeros(4)}, {})
    with pytest.raises(UserError, match=r"00000\.safetensors: no space left on device; free some space"):
        write_shard(path, {"x": torch.zeros(1 << 18)}, {})
    assert read_shard(path)["x"].shape == (4,)
    assert [entry.name for entry in small_disk.iterdir()] == ["00000.safetensors"]


def test_a_full_disk_leaves_the_old_joined_shard(tmp_path: Path, small_disk: Path) -> None:
    out, paths = small_disk / "joined.safetensors", [shard_path(tmp_path, index) for index in range(2)]
    for size in (4, 1 << 17):
        for path in paths:
            write_shard(path, {"x": torch.ones(size)}, {})
        if size == 4:
            join_shards(paths, "x", out)
            continue
        with pytest.raises(UserError, match=r"joined\.safetensors: no space left on device; free some space"):
            join_shards(paths, "x", out)
    assert torch.equal(read_shard(out)["x"], torch.ones(8))
    assert [entry.name for entry in small_disk.iterdir()] == [out.name]


def test_stored_rows_are_indexed_like_the_whole_tensor(tmp_path: Path) -> None:
    whole = torch.randn(7, 2, 3)
    for index, part in enumerate(whole.split(3)):
        write_shard(shard_path(tmp_path, index), {"states": part}, {})
    rows = StoredRows(tmp_path, "states", shards=3)
    chosen = torch.tensor([6, 0, 3, 3, 2])
    assert len(rows) == 7
    assert torch.equal(rows[chosen], whole[chosen])
    assert torch.equal(rows[chosen, -1], whole[chosen, -1])
    assert torch.equal(rows[chosen, :1, 1:], whole[chosen, :1, 1:])
    write_shard(shard_path(tmp_path / "half", 0), {"states": whole.bfloat16()}, {})
    half = StoredRows(tmp_path / "half", "states", shards=1)[chosen]
    assert (half.dtype, torch.equal(half, whole.bfloat16().float()[chosen])) == (torch.float32, True)
    before = rows[torch.tensor([1])]
    before.zero_()  # a copy: training may write to it
    assert torch.equal(rows[torch.tensor([1])], whole[[1]])
    path = shard_path(tmp_path, 1)
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[:-1] + bytes([whole_file[-1] ^ 1]))
    with pytest.raises(UserError, match=r"00001.safetensors: is corrupt"):
        StoredRows(tmp_path, "states", shards=3)
    path.unlink()
    with pytest.raises(UserError, match=r"00001.safetensors: no such shard"):
        StoredRows(tmp_path, "states", shards=3)


def test_shards_that_a_manifest_has_checked_are_not_read_again(tmp_path: Path) -> None:
    """Each process of each stage would read hundreds of gigabytes; files that are no shards are still refused."""
    whole = torch.randn(4, 3)
    for index, part in enumerate(whole.split(2)):
        write_shard(shard_path(tmp_path, index), {"states": part}, {})
    path = shard_path(tmp_path, 1)
    data = path.read_bytes()
    path.write_bytes(data[:-4] + bytes(4))  # visible if the file is read
    rows = StoredRows(tmp_path, "states", shards=2, checked=True)
    assert (len(rows), rows[torch.tensor([3])][0, -1].item()) == (4, 0.0)
    assert torch.equal(rows[torch.tensor([0, 1, 2])], whole[:3])
    for broken, said in (
        (data[:-4], "is truncated"),
        (b"no shard", "is truncated or not a shard"),
        (None, "no such shard"),
    ):
        path.unlink()
        if broken is not None:
            path.write_bytes(broken)
        with pytest.raises(UserError, match=rf"00001\.safetensors: {said}"):
            StoredRows(tmp_path, "states", shards=2, checked=True)
