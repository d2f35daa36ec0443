"""Files are synced before they get their names: after a power cut a file is old or new, and never empty."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vbench_toys import film

from hiar.io.artifacts import unfinished, write_manifest
from hiar.io.files import sync, write_text
from hiar.io.kept import keeping, read_kept
from hiar.io.shards import join_shards, write_shard
from hiar.io.states import Index, layout_of, publish, temporary_state, write_part
from hiar.vbench.clips import cut
from hiar.vbench.records import open_records


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names that rename calls gave to files and folders.

    Fails if anything below a name was not synced before, or if the parent of a renamed folder was not synced after.
    """
    synced: set[int] = set()
    names: list[str] = []
    open_folders: dict[int, Path] = {}
    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        open_folders.pop(os.fstat(descriptor).st_ino, None)
        fsync(descriptor)

    def watching(call: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any, **more: Any) -> None:
            place = Path(source)
            for path in (place, *place.rglob("*")):
                assert path.stat().st_ino in synced, f"{path} has not reached the disk before it is {target}"
            if place.is_dir():
                open_folders[place.parent.stat().st_ino] = place.parent
            call(source, target, **more)
            names.append(Path(target).name)

        return rename

    monkeypatch.setattr(os, "fsync", watched_fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, watching(getattr(os, name)))
    yield names
    assert not open_folders


def test_a_file_is_synced_before_it_is_named(tmp_path: Path, renamed: list[str]) -> None:
    write_text(tmp_path / "params.yaml", "seeds: [0]\n")
    write_shard(tmp_path / "00000.safetensors", {"states": torch.ones(2)}, {})
    join_shards([tmp_path / "00000.safetensors"], "states", tmp_path / "whole.safetensors")
    assert renamed == ["params.yaml", "00000.safetensors", "whole.safetensors"]


def test_a_training_state_is_synced_before_it_is_named(tmp_path: Path, renamed: list[str]) -> None:
    value = torch.ones(2)
    digest = write_part(temporary_state(tmp_path, 3), 0, {"value": value})
    publish(tmp_path, Index(step=3, curve=[], files=[digest], tensors={"value": layout_of(value, None)}))
    assert renamed[-1] == "state-00000003"


def test_an_artifact_is_synced_before_it_is_named(tmp_path: Path, renamed: list[str]) -> None:
    with unfinished(tmp_path / "pairs", {}) as folder:
        (folder / "captions.txt").write_text("a fox\n")  # a writer that syncs nothing
        (folder / "more").mkdir()
        (folder / "more" / "weights").write_bytes(b"0" * 100)
        write_manifest(folder, "pairs")
    assert renamed[-1] == "pairs"


def test_clips_are_synced_before_they_are_named(tmp_path: Path, renamed: list[str]) -> None:
    video = film(tmp_path / "film.mp4", 12, 0)
    cut(video, [range(8), range(4, 12)], 4, tmp_path / "clips" / "of the film")
    sync(tmp_path / "clips")  # only for this test: if the name is lost, the video is cut again
    assert renamed[-1] == "of the film"


def test_each_kept_result_is_synced_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one may take minutes."""
    synced: dict[int, int] = {}
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        state = os.fstat(descriptor)
        synced[state.st_ino] = state.st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    with keeping(tmp_path / "kept.jsonl") as keep, open_records(tmp_path, "scene", {}) as records:
        for number in range(3):
            keep({"video": number})
            records.add(str(number), f"{number}.mp4", {"video_results": 0.5})
            for path in (tmp_path / "kept.jsonl", records.path):
                state = path.stat()
                assert synced[state.st_ino] == state.st_size
    assert [one["video"] for one in read_kept(tmp_path / "kept.jsonl", ["video"])] == [0, 1, 2]
