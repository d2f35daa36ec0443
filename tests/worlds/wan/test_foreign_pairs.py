"""Pairs of HiAR and Self-Forcing: every state is where training reads it, and anything else is refused in a line."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest
import torch
from commands import hiar
from torch import Tensor

from hiar.errors import UserError
from hiar.schedule import warp
from hiar.stages.foreign_pairs import export_pairs, import_pairs
from hiar.stages.pairs import load_pairs
from hiar.worlds.wan.formats.pairs import foreign_pairs
from hiar.worlds.wan.formats.pairs_out import write_pairs

STATES, FRAMES, CHANNELS, HEIGHT, WIDTH = SHAPE = (5, 3, 2, 4, 6)
PROMPTS = ["a fox", "a street, in the rain", "雪\nand  snow", "four", "five"]
THEIRS = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(number)) for number in range(len(PROMPTS))]


def write_files(folder: Path) -> Path:
    """HiAR's format: a file per prompt, in fp32."""
    folder.mkdir()
    for number, (prompt, states) in enumerate(zip(PROMPTS, THEIRS, strict=True)):
        torch.save({prompt: states[None]}, folder / f"{number:05d}.pt")
    return folder


def write_lmdb(folder: Path) -> Path:
    """Self-Forcing's format: rows of fp16, whose keys are not in numerical order from ten rows on."""
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as rows:
        count = 11
        for number in range(count):
            rows.put(f"latents_{number}_data".encode(), THEIRS[number % 5].half().numpy().tobytes())
            rows.put(f"prompts_{number}_data".encode(), f"{number}: {PROMPTS[number % 5]}".encode())
        rows.put(b"latents_shape", " ".join(map(str, (count, *SHAPE))).encode())
        rows.put(b"prompts_shape", str(count).encode())
    return folder


def test_a_clip_after_a_trajectory_is_not_one_of_its_states(tmp_path: Path) -> None:
    """Causal-Forcing's pairs end in the data's clip: the clean state is the one before, at levels of one step less."""
    source = write_files(tmp_path / "source")
    run = hiar("import-pairs", source, "--shift", 5, "--clip-last", "--shard", 2, "--out", "pairs", folder=tmp_path)
    assert "in float32, at levels 1, 0.9091, 0.7143, 0, and a clip each" in run.stdout
    pairs = load_pairs(tmp_path / "pairs")
    assert pairs.clips is not None
    for number, theirs in enumerate(THEIRS):
        row = torch.tensor([number])
        assert torch.equal(pairs.states[row, -1][0], theirs[-2].transpose(0, 1))
        assert torch.equal(pairs.states[row, 0][0], theirs[0].transpose(0, 1))
        assert torch.equal(pairs.clips[row, 0][0], theirs[-1].transpose(0, 1))
        assert torch.equal(pairs.clean(row), pairs.clips[row, 0])
    export_pairs(tmp_path / "pairs", "hiar", tmp_path / "out")  # in their original form
    for path, theirs in zip(sorted((tmp_path / "out").iterdir()), THEIRS, strict=True):
        ((_, written),) = torch.load(path, weights_only=True).items()
        assert torch.equal(written[0], theirs)
    import_pairs(source, tmp_path / "pairs", levels=5.0, shard=16)
    whole = load_pairs(tmp_path / "pairs")
    assert whole.clips is None
    assert whole.states[torch.tensor([0])].shape[1] == STATES
    assert torch.equal(whole.clean(torch.tensor([3]))[0], THEIRS[3][-1].transpose(0, 1))


@pytest.mark.parametrize("shape", [(1, *SHAPE[1:]), SHAPE[1:]], ids=["six numbers", "five numbers"])
def test_clean_videos_are_pairs_of_one_state(shape: tuple[int, ...], tmp_path: Path) -> None:
    """The LMDB of clean videos of Causal-Forcing, and of CausVid."""
    source = tmp_path / "source"
    with lmdb.open(str(source), map_size=1 << 24) as environment, environment.begin(write=True) as rows:
        for number, theirs in enumerate(THEIRS):
            rows.put(f"latents_{number}_data".encode(), theirs[-1].half().numpy().tobytes())
            rows.put(f"prompts_{number}_data".encode(), PROMPTS[number].encode())
        rows.put(b"latents_shape", " ".join(map(str, (len(THEIRS), *shape))).encode())
    with pytest.raises(UserError, match=r"^--clip-last: .*source holds clips without trajectories; leave it out"):
        import_pairs(source, tmp_path / "pairs", levels=5.0, shard=2, clip_last=True)
    assert not (tmp_path / "pairs").exists()
    assert import_pairs(source, tmp_path / "pairs", levels=5.0, shard=2).endswith("in float16, at levels 0")
    pairs = load_pairs(tmp_path / "pairs")
    assert pairs.sigmas.tolist() == [0]
    for number, theirs in enumerate(THEIRS):
        assert torch.equal(pairs.clean(torch.tensor([number]))[0], theirs[-1].half().float().transpose(0, 1))


def test_a_folder_of_files_comes_with_every_state_in_its_place(tmp_path: Path) -> None:
    summary = import_pairs(write_files(tmp_path / "source"), tmp_path / "pairs", levels=8.0, shard=2)
    assert (
        summary
        == "5 pairs of 2x3x4x6 (channels, frames, height, width) in float32, at levels 1, 0.96, 0.8889, 0.7273, 0"
    )
    pairs = load_pairs(tmp_path / "pairs")
    assert sorted(path.name for path in (tmp_path / "pairs").glob("*.safetensors")) == [
        f"0000{number}.safetensors" for number in range(3)
    ]
    states = pairs.states[torch.arange(5)]
    for number, theirs in enumerate(THEIRS):
        for state in range(STATES):
            for frame in range(FRAMES):
                assert torch.equal(states[number, state, :, frame], theirs[state, frame])
    assert pairs.captions == [*PROMPTS[:2], "雪 and snow", *PROMPTS[3:]]
    torch.testing.assert_close(pairs.sigmas, warp(torch.tensor([1, 0.75, 0.5, 0.25, 0]), 8.0))


def test_levels_that_follow_no_shift_are_given_one_by_one(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source")
    with pytest.raises(UserError, match=r"--levels = 1,0\.757: .*source has 5 states a trajectory; give 4 levels"):
        import_pairs(source, tmp_path / "pairs", levels=(1.0, 0.757), shard=2)
    assert not (tmp_path / "pairs").exists()
    summary = import_pairs(source, tmp_path / "pairs", levels=(1.0, 0.757, 0.522, 0.1), shard=2)
    assert summary.endswith("at levels 1, 0.757, 0.522, 0.1, 0")
    assert load_pairs(tmp_path / "pairs").sigmas.tolist() == pytest.approx([1, 0.757, 0.522, 0.1, 0])


def test_an_lmdb_is_imported_in_the_numeric_order_of_its_rows(tmp_path: Path) -> None:
    source = write_lmdb(tmp_path / "source")
    (source / "lock.mdb").unlink()
    summary = import_pairs(source / "data.mdb", tmp_path / "pairs", levels=5.0, shard=4)
    assert summary.startswith("11 pairs of 2x3x4x6 (channels, frames, height, width) in float16, at levels 1, 0.9375, ")
    pairs = load_pairs(tmp_path / "pairs")
    states = pairs.states[torch.arange(11)]
    assert states.dtype == torch.float32
    for number in range(11):
        assert torch.equal(states[number], THEIRS[number % 5].half().float().transpose(1, 2))
        assert pairs.captions[number].startswith(f"{number}: ")
    import_pairs(source, tmp_path / "again", levels=5.0, shard=4)
    assert (tmp_path / "again" / "00002.safetensors").read_bytes() == (
        tmp_path / "pairs" / "00002.safetensors"
    ).read_bytes()
    assert [path.name for path in source.iterdir()] == ["data.mdb"]  # nothing is written into the source


class Code:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (exec, ("raise SystemExit('ran')",))


def spoiled(states: Tensor, value: str) -> Tensor:
    states = states.clone()
    states[3, 1, 0, 2, 2] = float(value)
    return states


FILES = {
    "code": (lambda: {"x": Code()}, r"00002\.pt: holds more than tensors .*code of a checkpoint is never run"),
    "another shape": (lambda: {"x": THEIRS[0][None, :4]}, r"00002\.pt: 'x': is torch\.float32 \(4, 2, 3, 4, 6\), and "),
    "another type": (lambda: {"x": THEIRS[0][None].half()}, r"00002\.pt: 'x': is torch\.float16 .*, and .*00000\.pt"),
    "no batch of one": (
        lambda: {"x": THEIRS[0]},
        r"00002\.pt: 'x': has the shape \(5, 3, 2, 4, 6\), not \(1, s",
    ),
    "two in one": (lambda: {"x": torch.stack(THEIRS[:2])}, r"00002\.pt: 'x': has the shape \(2, 5, 3, 2, 4, 6\)"),
    "no number": (
        lambda: {"x": spoiled(THEIRS[0], "nan")[None]},
        r"00002\.pt: 'x': has states that are not finite; remove",
    ),
    "no finite one": (lambda: {"x": spoiled(THEIRS[0], "-inf")[None]}, r"00002\.pt: 'x': has states that are not fin"),
    "whole numbers": (lambda: {"x": THEIRS[0][None].long()}, r"00002\.pt: 'x': is of type torch\.int64; give fp16"),
    "no tensor": (
        lambda: {"prompt": "a fox", "latents": THEIRS[0]},
        r"00002\.pt: 'prompt': should be a prompt with a traj",
    ),
    "no dictionary": (lambda: THEIRS[0], r"00002\.pt: should hold a dictionary of prompts"),
    "an empty one": (dict, r"00002\.pt: should hold a dictionary of prompts"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_pair_is_named_and_nothing_is_left(case: str, tmp_path: Path) -> None:
    made, line = FILES[case]
    folder = write_files(tmp_path / "source")
    torch.save(made(), folder / "00002.pt")
    with pytest.raises(UserError, match=line) as caught:
        import_pairs(folder, tmp_path / "pairs", levels=8.0, shard=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pairs").exists()


def test_a_failed_import_with_other_options_leaves_no_trace(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "source")
    whole = (folder / "00003.pt").read_bytes()
    (folder / "00003.pt").write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"00003\.pt: is truncated"):
        import_pairs(folder, tmp_path / "pairs", levels=8.0, shard=1)
    (folder / "00003.pt").write_bytes(whole)
    for _ in range(2):  # the second time over existing pairs
        import_pairs(folder, tmp_path / "pairs", levels=8.0, shard=4)
    shards = sorted(path.name for path in (tmp_path / "pairs").glob("*.safetensors"))
    assert shards == ["00000.safetensors", "00001.safetensors"]


def test_sources_without_pairs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other" / "data.mdb").parent.mkdir()
    (tmp_path / "other" / "data.mdb").write_bytes(pickle.dumps("no LMDB") * 2000)
    for name, line in {
        "nowhere": "is neither a folder of .pt files nor an LMDB; name one",
        "empty": "holds no .pt file and no data.mdb; name a folder of pairs",
        "other": "data.mdb: is damaged or not an LMDB (",
    }.items():
        with pytest.raises(UserError) as caught:
            import_pairs(tmp_path / name, tmp_path / "pairs", levels=8.0, shard=2)
        assert line in str(caught.value)


ROWS = {
    "a missing row": (b"latents_7_data", None, r"latents_7_data: it or its prompt is missing, of 11"),
    "a missing prompt": (b"prompts_7_data", None, r"latents_7_data: it or its prompt is missing, of 11"),
    "a short row": (b"latents_7_data", b"12", r"latents_7_data: has 2 bytes, \(5, 3, 2, 4, 6\) in fp16 takes 1440"),
    "a prompt that is no text": (b"prompts_7_data", b"\xff", r"latents_7_data: its prompt is not UTF-8"),
    "no shape": (b"latents_shape", None, r"latents_shape = b'': should be six numbers \(pairs, states, frames"),
    "a shape of words": (b"latents_shape", b"11 5 3 2 4 x", r"latents_shape = b'11 5 3 2 4 x': should be six numbers"),
    "a negative shape": (b"latents_shape", b"11 5 3 2 4 -6", r"latents_shape = b'11 5 3 2 4 -6': should be six"),
    "a shape of nothing": (b"latents_shape", b"11 5 3 2 0 6", r"latents_shape = b'11 5 3 2 0 6': should be six"),
    "a huge shape": (b"latents_shape", b"11 5 3 2 4 999999999", r"has 1440 bytes, \(5, 3, 2, 4, 999999999\)"),
}


@pytest.mark.parametrize("case", ROWS)
def test_an_lmdb_that_is_not_whole_is_named(case: str, tmp_path: Path) -> None:
    key, value, line = ROWS[case]
    source = write_lmdb(tmp_path / "source")
    with lmdb.open(str(source), map_size=1 << 24) as environment, environment.begin(write=True) as rows:
        rows.delete(key)
        if value is not None:
            rows.put(key, value)
    with pytest.raises(UserError, match=line):
        import_pairs(source, tmp_path / "pairs", levels=8.0, shard=2)
    assert not (tmp_path / "pairs").exists()


def test_a_truncated_lmdb_is_refused_before_it_is_mapped(tmp_path: Path) -> None:
    """Otherwise the kernel would kill the process."""
    file = write_lmdb(tmp_path / "source") / "data.mdb"
    whole = file.read_bytes()
    for size in (0, 100, 4096, 8192, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"data\.mdb: is (truncated|damaged or not an LMDB)"):
            import_pairs(file, tmp_path / "pairs", levels=8.0, shard=2)


def test_the_command_prints_what_it_imported(tmp_path: Path) -> None:
    write_files(tmp_path / "source")
    run = hiar("import-pairs", "source", "--out", "pairs", "--shard", 4, "--shift", 3, folder=tmp_path)
    assert run.stdout.startswith("pairs: 5 pairs of 2x3x4x6 ")
    torch.testing.assert_close(load_pairs(tmp_path / "pairs").sigmas, warp(torch.tensor([1, 0.75, 0.5, 0.25, 0]), 3.0))
    assert len(list((tmp_path / "pairs").glob("*.safetensors"))) == 2  # one of four pairs and one of one
    told, error = hiar("import-pairs", "nowhere", "--out", "pairs", folder=tmp_path, code=2).stderr.splitlines()
    assert told == "pairs: what is there is replaced when the new artifact is complete"
    assert error == "error: nowhere: is neither a folder of .pt files nor an LMDB; name one"


def test_pairs_are_exported_as_files_bit_by_bit(tmp_path: Path) -> None:
    """Each file is what HiAR's loader reads: one prompt, one trajectory in a batch of one, frames before channels."""
    import_pairs(write_files(tmp_path / "source"), tmp_path / "pairs", levels=8.0, shard=2)
    export_pairs(tmp_path / "pairs", "hiar", tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*"))
    assert len(files) == len(PROMPTS)
    for path, prompt, states in zip(files, PROMPTS, THEIRS, strict=True):
        ((caption, written),) = torch.load(path, weights_only=True).items()
        assert caption == " ".join(prompt.split())
        assert torch.equal(written, states[None])
        assert written.dtype == torch.float32
    import_pairs(tmp_path / "out", tmp_path / "again", levels=8.0, shard=2)
    for path in (tmp_path / "pairs").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_pairs_are_exported_as_rows_of_an_lmdb(tmp_path: Path) -> None:
    """Rows as Self-Forcing reads them: by number, with their shape in ``latents_shape``."""
    import_pairs(write_files(tmp_path / "source"), tmp_path / "pairs", levels=8.0, shard=2)
    export_pairs(tmp_path / "pairs", "self-forcing", tmp_path / "out")
    with lmdb.open(str(tmp_path / "out"), readonly=True, lock=False) as environment, environment.begin() as rows:
        assert rows.get(b"latents_shape") == b"5 5 3 2 4 6"
        assert rows.get(b"prompts_shape") == b"5"
        assert rows.stat()["entries"] == 2 * len(PROMPTS) + 2
        for number, states in enumerate(THEIRS):
            assert rows.get(f"latents_{number}_data".encode()) == states.half().numpy().tobytes()
            assert rows.get(f"prompts_{number}_data".encode()).decode() == " ".join(PROMPTS[number].split())


@pytest.mark.parametrize("form", ["hiar", "self-forcing"])
def test_nothing_of_an_interrupted_export_is_in_the_next(form: str, tmp_path: Path) -> None:
    """Even if the next has fewer pairs."""
    states = torch.stack(THEIRS).transpose(2, 3)

    def interrupted() -> Iterator[Tensor]:
        yield states[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pairs(PROMPTS, interrupted, form, tmp_path / "out")
    write_pairs(PROMPTS[:1], lambda: iter([states[:1]]), form, tmp_path / "out")
    assert [pair.prompt for pair in foreign_pairs(tmp_path / "out")] == PROMPTS[:1]
    if form == "self-forcing":
        with lmdb.open(str(tmp_path / "out"), readonly=True, lock=False) as environment:
            assert environment.stat()["entries"] == 4


def test_an_export_needs_the_room_of_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.zeros(1, 5, 4, 10, 40, 40)
    free = states.nbytes - 1
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(total=2 * free, used=0, free=free))
    with pytest.raises(UserError, match=r"out: needs .* GB, .* GB are free; free some space"):
        write_pairs(PROMPTS[:1], lambda: iter([states]), "hiar", tmp_path / "out")
    write_pairs(PROMPTS[:1], lambda: iter([states]), "self-forcing", tmp_path / "out")


def test_a_refused_export_leaves_nothing(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.mkdir()
    torch.save({"a fox": 1e5 * THEIRS[0][None]}, large / "00000.pt")
    import_pairs(large, tmp_path / "pairs", levels=8.0, shard=2)
    (tmp_path / "there").mkdir()
    for form, out, line in (
        (
            "self-forcing",
            "out",
            r"pair 0 \('a fox'\): is out of the range of float16, in which an LMDB stores; use --to hiar$",
        ),
        ("hair", "out", "--to = hair: is not an export format; did you mean 'hiar'"),
        ("hiar", "there", "--out = .*there: exists already; remove it or choose another name$"),
    ):
        with pytest.raises(UserError, match=line):
            export_pairs(tmp_path / "pairs", form, tmp_path / out)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"large/manifest\.json: no such file"):
        export_pairs(large, "hiar", tmp_path / "out")
    hiar("export-pairs", "pairs", "--to", "hiar", "--out", "out", folder=tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.pt"]
