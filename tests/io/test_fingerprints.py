"""Fingerprints: which changes they detect, and that no file is read twice."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hiar.errors import UserError
from hiar.io import fingerprints
from hiar.io.fingerprints import RECORDS, cache_folder, fingerprint
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


def _change_unseen(path: Path) -> None:
    """Change a byte, but neither size nor modification time."""
    state = path.stat()
    path.write_bytes(b"W" + path.read_bytes()[1:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_fingerprint_depends_on_names_and_contents_alone(model: Path, cache: Path, tmp_path: Path) -> None:
    before = fingerprint(model, cache)
    copy = tmp_path / "elsewhere" / "model"
    shutil.copytree(model, copy)
    (copy / ".gitattributes").write_text("hidden")
    (copy / ".git").mkdir()
    (copy / ".git" / "config").write_text("hidden too")
    assert fingerprint(copy, cache) == before
    assert fingerprint(copy, tmp_path / "other cache") == before
    hidden = tmp_path / ".cache" / "model"  # as other programs keep models
    shutil.copytree(model, hidden)
    assert fingerprint(hidden, cache) == before
    (copy / "weights.safetensors").rename(copy / "other.safetensors")
    assert fingerprint(copy, cache) != before
    assert fingerprint([model / "config.json"], cache) != fingerprint([model / "weights.safetensors"], cache)


def test_a_fingerprint_does_not_depend_on_the_order_of_directory_entries(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(model, cache)
    walk = os.walk
    backwards = lambda *of, **how: [(*one, sorted(names, reverse=True)) for *one, names in walk(*of, **how)]  # noqa: E731
    monkeypatch.setattr(os, "walk", backwards)
    assert fingerprint(model, tmp_path / "other cache") == before


def test_a_fingerprint_follows_links(model: Path, cache: Path, tmp_path: Path) -> None:
    (model / "vae").mkdir()
    (model / "vae" / "config.json").write_text("[]")
    linked = tmp_path / "links" / "model"
    linked.mkdir(parents=True)
    for path in model.iterdir():
        (linked / path.name).symlink_to(path)
    assert fingerprint(linked, cache) == fingerprint(model, cache)


def test_a_file_is_read_again_only_on_request(model: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = fingerprint(model, cache)
    _change_unseen(model / "weights.safetensors")
    (cache / LOCK).unlink()
    capfd.readouterr()
    assert fingerprint(model, cache) == before
    assert capfd.readouterr().err == ""
    assert not (cache / LOCK).exists()  # nothing is written, since the cache may be read-only
    after = fingerprint(model, cache, verify=True)
    assert after != before
    assert "weights.safetensors: its content has changed, though its size and time" in capfd.readouterr().err
    assert fingerprint(model, cache) == after


@pytest.mark.parametrize(("content", "later"), [(b"Weights" + b"weights" * 999, 1), (b"weights", 0)])
def test_a_file_of_another_size_or_time_is_read_again(
    model: Path, cache: Path, content: bytes, later: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = model / "weights.safetensors"
    before, at = fingerprint(model, cache), path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(at + later, at + later))
    assert fingerprint(model, cache) != before
    assert "its content has changed" not in capfd.readouterr().err  # its size or time tells that


def test_progress_counts_megabytes_of_the_files_that_are_read(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each begun one as a whole, and as many in parts as in one."""
    monkeypatch.setattr(fingerprints, "_PART", 2**20 - 1)
    (model / "large").write_bytes(bytes(3 * 2**20 + 1))
    fingerprint(model, cache)
    assert "fingerprint: 6/6 MB in " in capfd.readouterr().err
    (model / "more").write_bytes(bytes(2**20))
    fingerprint(model, cache)
    assert "fingerprint: 1/1 MB in " in capfd.readouterr().err


def test_a_file_is_remembered_by_its_whole_path(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two projects may have files of the same name, size and time."""
    found = []
    for content in ("one", "two"):
        (tmp_path / content).mkdir()
        monkeypatch.chdir(tmp_path / content)
        Path("model").write_text(content)
        os.utime("model", ns=(1, 1))
        found.append(fingerprint(Path("model"), cache))
    assert found[0] != found[1]


def test_a_file_that_changes_while_it_is_read_is_refused(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = fingerprints._parts

    def changing(path: Path) -> Iterator[memoryview]:
        yield from parts(path)
        os.utime(path, ns=(1, 1))

    monkeypatch.setattr(fingerprints, "_parts", changing)
    with pytest.raises(UserError, match=r"config\.json: changed while it was read; wait until it is complete"):
        fingerprint(model, cache)


def test_concurrent_fingerprints_agree_and_read_each_file_once(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each waits for what another one is reading, and says so in a line."""
    read, done = fingerprints._read, []

    def slow(path: Path, *others: object) -> object:
        done.append(path.name)
        time.sleep(0.1)
        return read(path, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(fingerprints, "_read", slow)
    with ThreadPoolExecutor(4) as pool:
        places = [model / "config.json", model / "weights.safetensors", model, model]
        found = list(pool.map(lambda place: fingerprint(place, cache), places))
    assert found[2] == found[3]
    assert sorted(done) == ["config.json", "weights.safetensors"]
    assert f"{cache}: another process is writing; waiting for it" in capfd.readouterr().err
    _change_unseen(model / "weights.safetensors")
    assert [fingerprint(place, cache) for place in places] == found


def test_a_missing_or_empty_folder_is_one_line(model: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*nothing: no such file or folder; name an existing model$"):
        fingerprint(model / "nothing", cache)
    with pytest.raises(UserError, match=r"^[^\n]*json/inside: cannot be read \(Not a directory\); name another$"):
        fingerprint(model / "config.json" / "inside", cache)
    (model / "empty").mkdir()
    with pytest.raises(UserError, match=r"^[^\n]*empty: holds no files; name a folder with a model$"):
        fingerprint(model / "empty", cache)


def test_a_file_that_cannot_be_opened_is_one_line(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket stands for files that only others may read: root, too, cannot open it."""
    monkeypatch.chdir(model)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        line = rf"^{model}/socket: cannot be read \(No such device or address\); get permission or name another$"
        with pytest.raises(UserError, match=line):
            fingerprint(model, cache)


def test_the_error_about_an_unusable_cache_names_hiar_cache(model: Path, tmp_path: Path) -> None:
    """As when the home folder is a file, or the cache cannot be written."""
    (tmp_path / "home").write_text("no folder")
    cache = tmp_path / "cache"
    (cache / LOCK).mkdir(parents=True)
    for place, line in ((tmp_path / "home", f"home/{RECORDS}: cannot be read"), (cache, f"{LOCK}: is a directory")):
        with pytest.raises(UserError, match=rf"{line}[^;\n]*; fix that, or set HIAR_CACHE to a folder of your own$"):
            fingerprint(model, place)


@pytest.mark.parametrize("content", ["", "[]", '{"/a": {"size": -1, "mtime_ns": 1, "sha256": ""}}', '{"/a": {}}'])
def test_a_broken_record_is_one_line(model: Path, cache: Path, content: str) -> None:
    cache.mkdir(parents=True)
    (cache / RECORDS).write_text(content)
    with pytest.raises(UserError, match=rf"^[^\n]*{RECORDS}: is not a record of fingerprints; delete it, [^\n]*$"):
        fingerprint(model, cache)


def test_the_cache_folder_is_configurable_and_a_missing_home_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a container's user who has an id but no name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HIAR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / ".cache" / "hiar"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "hiar"
    monkeypatch.setenv("HIAR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    for name in ("HOME", "HIAR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # an id that exists nowhere
    with pytest.raises(UserError, match=r"^HIAR_CACHE: is not set, and this user has no home folder"):
        cache_folder()
