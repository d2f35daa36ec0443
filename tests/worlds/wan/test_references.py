"""A part by reference is the part that was referenced, from whatever folder it is looked up."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from commands import ROOT

from hiar.config import WanWorld
from hiar.errors import UserError
from hiar.parameters import read_yaml
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, Part
from hiar.worlds.wan import Wan
from hiar.worlds.wan.references import FOLDERS, REFERENCE, locate, refer, referred

PLACES: list[tuple[Part, str]] = [
    (TRANSFORMER, "transformer/config.json"),
    (TEXT, "text_encoder/config.json"),
    (TEXT, "tokenizer/tokenizer.json"),
    (CODEC, "vae/config.json"),
]


@pytest.mark.parametrize(("part", "place"), PLACES)
def test_a_changed_file_of_the_base_is_noticed(base: Path, tmp_path: Path, part: Part, place: str) -> None:
    shutil.copytree(base, tmp_path / "base")
    refer(tmp_path / "part", tmp_path / "base", part)
    for _, other in PLACES:
        if not other.startswith(place.split("/")[0]) and (part, other) not in PLACES:
            (tmp_path / "base" / other).write_text("{}")
    assert locate(tmp_path / "part") == tmp_path / "base"
    with (tmp_path / "base" / place).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=rf"its {part} has changed; restore the one"):
        locate(tmp_path / "part")


WORLD = Wan(WanWorld.model_validate(read_yaml(ROOT / "experiments" / "wan-tiny.yaml")["world"]))


@pytest.mark.parametrize("read", [partial(locate, verify=True), WORLD.verify])
def test_a_damaged_file_of_unchanged_size_and_time_is_noticed_when_all_are_read(
    read: Callable[[Path], object], base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "base")
    refer(tmp_path / "part", tmp_path / "base", CODEC)
    path = tmp_path / "base" / "vae" / "config.json"
    state = path.stat()
    path.write_bytes(bytes(state.st_size))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert locate(tmp_path / "part") == tmp_path / "base"
    with pytest.raises(UserError, match=r"its codec has changed; restore the one"):
        read(tmp_path / "part")


def test_a_base_is_found_from_any_folder_and_an_invalid_reference_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(base.parent)
    refer(tmp_path / "part", Path(base.name), CODEC)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert locate(tmp_path / "part") == base
    assert locate(tmp_path / "elsewhere") is None  # a part that is there itself, not by reference
    note = tmp_path / "part" / REFERENCE
    note.write_text(json.dumps(json.loads(note.read_text()) | {"weights": "generator"}))
    with pytest.raises(UserError, match=r"reference\.json: weights = 'generator': unknown parameter; .*again"):
        locate(tmp_path / "part")
    with pytest.raises(UserError, match=r"vae: no such folder; name a base model of Wan2\.1"):
        refer(tmp_path / "part", tmp_path, CODEC)


def test_folders_mistaken_for_a_base_are_refused_with_the_fix(base: Path, tmp_path: Path) -> None:
    """A hub cache, whose files are links in its newest snapshot; the original's folder; a bare name."""
    cache, original = tmp_path / "models--Wan-AI--Wan2.1", tmp_path / "Wan2.1-T2V-1.3B"
    snapshot = cache / "snapshots" / "0fad"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(path for path in base.rglob("*") if path.is_file()):
        blob, link = cache / "blobs" / str(number), snapshot / path.relative_to(base)
        shutil.copyfile(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (cache / "snapshots" / "half").mkdir()  # a download that has just begun
    for older in ("0bad", "fade"):
        (cache / "snapshots" / older / "transformer").mkdir(parents=True)
        os.utime(cache / "snapshots" / older, (1, 1))
    original.mkdir()
    (original / "config.json").write_text("{}")
    for named, words in (
        (cache, f"is a cache of models; name {snapshot}"),
        (snapshot / "transformer", f"transformer is a part of a base; name {snapshot}"),
        (original, f"convert it once with `hiar base {original} --out NEW`"),
        (Path("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), "a folder on this machine: nothing is downloaded"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            refer(tmp_path / "part", named, TRANSFORMER)
    for part in FOLDERS:
        refer(tmp_path / part, snapshot, part)
        refer(tmp_path / "part", base, part)
        assert referred(tmp_path / part)[1] == referred(tmp_path / "part")[1]  # type: ignore[index]
