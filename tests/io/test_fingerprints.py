"""Fingerprints: which changes they see, and that files are not read twice."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hiar.errors import UserError
from hiar.io.fingerprints import RECORDS, fingerprint
from hiar.io.locks import LOCK


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(b"weights" * 1000)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "new" / "cache"


def _spoil_unseen(path: Path) -> None:
    """Change a byte, but neither size nor time."""
    state = path.stat()
    path.write_bytes(b"W" + path.read_bytes()[1:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_it_is_of_names_and_contents_alone(model: Path, cache: Path, tmp_path: Path) -> None:
    before = fingerprint(model, cache)
    copy = tmp_path / "elsewhere" / "model"
    shutil.copytree(model, copy)
    (copy / ".gitattributes").write_text("hidden")
    assert fingerprint(copy, cache) == before
    assert fingerprint(copy, tmp_path / "other cache") == before
    (copy / "weights.safetensors").rename(copy / "other.safetensors")
    assert fingerprint(copy, cache) != before
    assert fingerprint([model / "config.json"], cache) != fingerprint([model / "weights.safetensors"], cache)


def test_it_follows_links(model: Path, cache: Path, tmp_path: Path) -> None:
    linked = tmp_path / "links" / "model"
    linked.mkdir(parents=True)
    for path in model.iterdir():
        (linked / path.name).symlink_to(path)
    assert fingerprint(linked, cache) == fingerprint(model, cache)


def test_a_file_is_read_once_and_again_only_when_asked(
    model: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(model, cache)
    _spoil_unseen(model / "weights.safetensors")
    (cache / LOCK).unlink()
    capfd.readouterr()
    assert fingerprint(model, cache) == before
    assert capfd.readouterr().err == ""
    assert not (cache / LOCK).exists()  # nor is anything written: the cache may be read-only
    after = fingerprint(model, cache, verify=True)
    assert after != before
    assert "weights.safetensors: has other content than before, though its size and time" in capfd.readouterr().err
    assert fingerprint(model, cache) == after


@pytest.mark.parametrize("content", [b"Weights" + b"weights" * 999, b"weights"])
def test_a_file_of_another_size_or_time_is_read_anew(model: Path, cache: Path, content: bytes) -> None:
    before = fingerprint(model, cache)
    (model / "weights.safetensors").write_bytes(content)
    os.utime(model / "weights.safetensors", ns=(1, 1))
    assert fingerprint(model, cache) != before


def test_several_at_once_agree_and_lose_nothing(model: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        places = [model / "config.json", model / "weights.safetensors", model, model]
        found = list(pool.map(lambda place: fingerprint(place, cache), places))
    assert found[2] == found[3]
    _spoil_unseen(model / "weights.safetensors")
    assert [fingerprint(place, cache) for place in places] == found


def test_what_cannot_be_read_is_one_line(model: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*nothing: no such file or folder; name one of a model$"):
        fingerprint(model / "nothing", cache)
    (model / "empty").mkdir()
    with pytest.raises(UserError, match=r"^[^\n]*empty: holds no files; name a folder with a model$"):
        fingerprint(model / "empty", cache)


@pytest.mark.parametrize("content", ["", "[]", '{"/a": {"size": -1, "mtime_ns": 1, "sha256": ""}}', '{"/a": {}}'])
def test_a_broken_record_is_one_line(model: Path, cache: Path, content: str) -> None:
    cache.mkdir(parents=True)
    (cache / RECORDS).write_text(content)
    with pytest.raises(UserError, match=rf"^[^\n]*{RECORDS}: is no record of fingerprints; delete it, [^\n]*$"):
        fingerprint(model, cache)
