"""Artifact folders are complete or absent, whenever the writer is killed; contents are checked when read."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hiar.errors import UserError
from hiar.io import manifests
from hiar.io.artifacts import content_hash, read_manifest, unfinished, write_manifest
from hiar.io.files import atomic_file, json_line, temporary_of, write_json, write_text
from hiar.io.shards import write_shard

fork = multiprocessing.get_context("fork")


def fill(folder: Path, text: str, stop_after: int = 9) -> None:
    """Write a small artifact; resumed, it does not write again what its state marks as done."""
    with unfinished(folder, {"text": text}) as partial:
        state = partial / ".state"
        state.touch()
        done = state.read_text().split()
        for name in ("a.txt", "b.txt", "deep/c.txt"):
            if name not in done:
                write_text(partial / name, f"{text} {name}")
                done.append(name)
                with state.open("a") as file:
                    file.write(f"{name}\n")
            if len(done) == stop_after:
                raise InterruptedError
        write_manifest(partial, "toy", text=text)


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def in_child(body: Callable[[], None]) -> int:
    """The exit code of ``body`` run in a forked process, -N when signal N ended it.

    It ends without Python's clean-up, which would wait for threads of other tests that a fork does not copy.
    """
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_folder_appears_whole_under_its_name_and_leaves_nothing_beside(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "codec"
    with unfinished(folder, {}) as partial:
        assert partial == tmp_path / "out" / "codec.partial"
        write_text(partial / "x", "1")
        assert not folder.exists()
    assert tree(tmp_path) == {"out/codec/x": "1"}
    assert [path.name for path in folder.parent.iterdir()] == ["codec"]


def test_an_exception_leaves_the_old_folder_and_the_partial_one(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    fill(folder, "old")
    with pytest.raises(ZeroDivisionError), unfinished(folder, {"text": "new"}) as partial:
        write_text(partial / "a.txt", "half")
        raise ZeroDivisionError
    assert read_manifest(folder, "toy")["text"] == "old"
    with unfinished(folder, {"text": "new"}) as partial:
        assert (partial / "a.txt").read_text() == "half"
    with pytest.raises(ZeroDivisionError), unfinished(tmp_path / "nothing", {}):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["out"]  # nothing was written, so nothing is left


@pytest.mark.parametrize("second", [{"steps": 2, "world": [1]}, {"steps": 3, "world": [1]}, {"steps": 2}])
def test_work_is_resumed_only_under_an_equal_key(second: dict[str, object], tmp_path: Path) -> None:
    first = {"world": [1], "steps": 2}
    with pytest.raises(ZeroDivisionError), unfinished(tmp_path / "out", first) as partial:
        write_text(partial / "done", "1")
        raise ZeroDivisionError
    with unfinished(tmp_path / "out", second) as partial:
        assert (partial / "done").exists() == (first == second)


def test_work_under_another_key_is_kept_and_the_fields_that_differ_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first three, sorted, whether they were changed, added or removed."""
    first: dict[str, object] = {"world": {"size": 64, "kind": "shapes"}, "seed": 0, "steps": 2}
    others: list[tuple[dict[str, object], str]] = [
        (first | {"world": {"size": 32, "kind": "shapes"}}, "world.size"),
        (first | {"more": 1, "seed": 1, "world": {"kind": "shapes"}}, "more, seed, world.size"),
        ({"world": {"size": 32, "kind": "wan"}, "code": "x"}, "code, seed, steps and 2 more"),
        ({"world": {"size": 64}, "seed": 1, "steps": 3, "code": "x"}, "code, seed, steps and 1 more"),
    ]
    for number, (other, named) in enumerate(others, 1):
        for key in (first, other):
            with pytest.raises(ZeroDivisionError), unfinished(tmp_path / "out", key) as partial:
                write_text(partial / "done", "1")
                raise ZeroDivisionError
        line = f"out.partial: was started with other settings ({named}); it is kept as {tmp_path / 'out'}.aside-"
        said = capsys.readouterr().err.splitlines()[-1]
        assert line in said
        assert said.endswith(f"aside-{2 * number - 1}.partial")


def test_killed_at_any_operation_the_next_run_ends_as_an_unkilled_one(memory_disk: Path) -> None:
    """A run replaces an old folder and sets aside another run's unfinished one. It is killed once at every operation
    that changes the file system, and then either of the two runs is repeated.
    """
    after = memory_disk / "after"
    folder = memory_disk / "work" / "out"
    for text in ("new", "other"):
        fill(after / text, text)

    def die_at(moment: int) -> None:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
            if changes or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
                seen += 1
                if seen == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        fill(folder, "new")

    moment, code = 0, None
    while code != 0:
        moment += 1
        for text in ("new", "other"):
            shutil.rmtree(folder.parent, ignore_errors=True)
            fill(folder, "old")
            with pytest.raises(InterruptedError):
                fill(folder, "other", stop_after=2)
            code = in_child(lambda moment=moment: die_at(moment))
            assert code in (0, -signal.SIGKILL)
            if folder.exists():
                assert read_manifest(folder, "toy")["text"] in ("old", "new")
            else:
                assert read_manifest(folder.with_name("out.old.partial"), "toy")["text"] == "old"
            fill(folder, text)
            assert tree(folder) == tree(after / text)
            # The other run's work is resumed or set aside.
            beside = [name for name in os.listdir(folder.parent) if name != "out"]
            assert all(re.fullmatch(r"out\.aside-\d\.partial", name) for name in beside)
            others = [*folder.parent.glob("*.partial/a.txt"), folder / "a.txt"]
            assert "other a.txt" in [path.read_text() for path in others]
    assert moment > 30


def test_temporary_files_of_a_killed_save_are_removed_on_resuming(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), unfinished(folder, {}) as partial:
        (partial / "model").mkdir()
        for debris in (".tmpXY12z", "model/.tmpAbCd", ".a.json.tmp"):
            write_text(partial / debris, "half")
        write_text(partial / ".state", "kept")
        raise ZeroDivisionError
    with unfinished(folder, {}) as partial:
        assert sorted(tree(partial)) == [".key.json", ".state"]
    assert tree(folder) == {}


def test_files_are_as_readable_as_the_umask_allows(tmp_path: Path) -> None:
    """Including files by safetensors, which restricts their rights, and those begun by a killed run.

    A file elsewhere that an artifact has a link to keeps its rights.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch(0o600)
    old = os.umask(0o027)
    try:
        with unfinished(tmp_path / "made", {}) as folder:
            (folder / "link").symlink_to(elsewhere)
            save_file({"a": torch.ones(1)}, folder / "weights.safetensors")
            write_shard(folder / "shard.safetensors", {"a": torch.ones(1)}, {})
            write_text(folder / "sub" / "text", "")
        temporary_of(tmp_path / "alone").touch(0o600)
        write_shard(tmp_path / "alone", {"a": torch.ones(1)}, {})
    finally:
        os.umask(old)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*") if path.is_file()}
    assert (modes.pop("elsewhere"), modes.pop("link")) == ("0o600", "0o600")
    assert modes == dict.fromkeys(("weights.safetensors", "shard.safetensors", "text", "alone"), "0o640")


def test_a_second_writer_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    held, release = fork.Event(), fork.Event()

    def hold() -> None:
        with unfinished(folder, {}):
            held.set()
            release.wait(30)

    child = fork.Process(target=hold)
    child.start()
    assert held.wait(30)
    with pytest.raises(UserError, match=r"out\.partial: another process is writing it"), unfinished(folder, {}):
        pass
    child.kill()
    child.join()
    with unfinished(folder, {}) as partial:
        write_text(partial / "x", "1")
    assert tree(folder) == {"x": "1"}


@pytest.mark.parametrize("name", [".", "..", "taken", "file", "file/below"])
def test_a_file_or_folder_that_is_no_artifact_is_not_replaced(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("taken/thesis.txt"), "years of work")
    write_text(Path("file"), "too")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=r"; .*choose"), unfinished(Path(name), {}):
        pass
    assert tree(tmp_path) == before


def save_tensors(partial: Path) -> None:
    save_file({"x": torch.zeros(1 << 18)}, partial / "x.safetensors")


def save_json(partial: Path) -> None:
    write_json(partial / "x.json", "x" * (1 << 20))


def save_through_a_temporary(partial: Path) -> None:
    with (partial / "x").open("wb") as file:
        file.write(bytes(1 << 20))


WRITERS = [save_tensors, save_json, save_through_a_temporary]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_one_line_with_a_remedy_and_the_old_folder_stays(
    write: Callable[[Path], None], small_disk: Path
) -> None:
    folder = small_disk / "out"
    fill(folder, "old")
    with (
        pytest.raises(UserError, match=r"^\S*out\S*: no space left on device; free some space and run again$"),
        unfinished(folder, {"key": "new"}) as partial,
    ):
        write(partial)
    assert read_manifest(folder, "toy")["text"] == "old"


@pytest.mark.parametrize("write", [save_tensors, save_json, save_through_a_temporary])
def test_a_file_size_limit_is_one_line_with_a_remedy(write: Callable[[Path], None], tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with (
            pytest.raises(UserError, match=r"out.*: file too large; raise the limit"),
            unfinished(tmp_path / "out", {}) as partial,
        ):
            write(partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()


def test_a_place_without_permission_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    """Run as another user if this one is root, whom permissions do not stop."""
    locked = tmp_path / "locked"
    locked.mkdir()
    tmp_path.chmod(0o755)
    locked.chmod(0o555)

    def as_nobody() -> None:
        os.chdir(tmp_path)
        if os.geteuid() == 0:
            os.seteuid(65534)
        with (
            pytest.raises(UserError, match=r"^locked/out\.partial: permission denied; get permission"),
            unfinished(Path("locked/out"), {}),
        ):
            pass
        with pytest.raises(UserError, match=r"^locked/m\.json: permission denied; get permission"):
            write_json(Path("locked/m.json"), {})

    assert in_child(as_nobody) == 0


def test_json_is_the_same_bytes_whatever_the_order_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "m.json", {"b": 1.5, "a": "é"})
    write_json(tmp_path / "m.json", {"a": "é", "b": 1.5})
    assert (tmp_path / "a" / "m.json").read_bytes() == (tmp_path / "m.json").read_bytes()
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "m.json", {"a": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"a": float("nan")})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": "é", "b": 1.5}


@pytest.mark.parametrize("end", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_abandoned_file_leaves_the_old_one_and_nothing_else(tmp_path: Path, end: type[BaseException]) -> None:
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(end), atomic_file(tmp_path / "x.txt") as temporary:
        temporary.write_text("half")
        raise end
    assert tree(tmp_path) == {"x.txt": "old"}


def test_a_manifest_is_deterministic_and_follows_contents_through_parents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fill(tmp_path / name, "same")
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "two")
    fill(tmp_path / "two", "changed")
    assert content_hash(tmp_path / "one") != content_hash(tmp_path / "two")
    with unfinished(tmp_path / "child", {}) as partial:
        write_manifest(partial, "child", parents={"toy": content_hash(tmp_path / "two")}, seed=3)
    manifest = read_manifest(tmp_path / "child", "child")
    assert manifest["parents"] == {"toy": content_hash(tmp_path / "two")}
    assert manifest["seed"] == 3
    assert str(tmp_path) not in (tmp_path / "child/manifest.json").read_text()


def test_the_code_of_a_manifest_is_the_commit_of_the_package_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dirty if a file of the package differs, not with others: every run changes metrics. None if it is installed."""

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
        run = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return run.stdout

    for place in (tmp_path / "hiar", tmp_path / "lib" / "hiar"):
        (place / "io").mkdir(parents=True)
        (place / "errors.py").touch()
    (tmp_path / "dvc.lock").touch()
    git("init", "--quiet")
    git("add", "hiar", "dvc.lock")
    git("commit", "--quiet", "--message", "one")
    commit = git("rev-parse", "HEAD").strip()
    monkeypatch.setattr(manifests, "__file__", str(tmp_path / "hiar" / "io" / "manifests.py"))
    version = manifests.code_version.__wrapped__
    (tmp_path / "dvc.lock").write_text("of a run")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))  # as inside a hook of another repository
    assert version() == {"commit": commit, "dirty": False}
    (tmp_path / "hiar" / "errors.py").write_text("x = 1\n")
    assert version() == {"commit": commit, "dirty": True}
    monkeypatch.setattr(manifests, "__file__", str(tmp_path / "lib" / "hiar" / "io" / "manifests.py"))
    assert version() == {"commit": "unknown", "dirty": False}


def test_a_manifest_lists_every_file_but_scratch(tmp_path: Path) -> None:
    """Manifests of folders in it too; and in a hidden folder as in any other."""
    folder = tmp_path / ".hidden" / "out"
    for name in ("a.txt", "deep/manifest.json", "deep/.scratch", ".scratch/b.txt"):
        write_text(folder / name, name)
    write_manifest(folder, "toy", text="x")
    assert read_manifest(folder, "toy")["files"].keys() == {"a.txt", "deep/manifest.json"}
    with pytest.raises(ValueError, match=r"facts of a manifest cannot be called code, files$"):
        write_manifest(folder, "toy", files={}, code="of somebody")
    assert read_manifest(folder, "toy")["text"] == "x"


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda f: (f / "a.txt").unlink(), r"a\.txt: cannot be read"),
    "truncated": (lambda f: (f / "a.txt").write_text("t"), r"a\.txt: size = 1 bytes: should be 7"),
    "altered": (lambda f: (f / "deep/c.txt").write_text("y" * 12), r"c\.txt: does not match its manifest"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: no such file"),
    "half a manifest": (lambda f: (f / "manifest.json").write_text('{"kind": "to'), "is not a manifest"),
    "a list": (lambda f: (f / "manifest.json").write_text("[1]"), "is not a manifest"),
    "no folder": (shutil.rmtree, r"manifest\.json: no such file"),
    "other kind": (lambda f: write_manifest(f, "other"), "kind = 'other': should be 'toy'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_a_remedy(damage: str, tmp_path: Path) -> None:
    do, message = DAMAGE[damage]
    fill(tmp_path / "out", "x")
    do(tmp_path / "out")
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(tmp_path / "out", "toy")
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_file_is_read_again_only_if_its_size_or_time_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hash is recorded in the user's cache, for all processes. Small files are read each time."""
    monkeypatch.setenv("HIAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifests, "LARGE", 1000)
    folder = tmp_path / "out"
    folder.mkdir()
    large, small = folder / "large", folder / "small"
    large.write_bytes(b"x" * 1000)
    small.write_bytes(b"x" * 999)
    write_manifest(folder, "toy")
    read_manifest(folder, "toy")

    def spoil(path: Path) -> os.stat_result:
        state = path.stat()
        path.write_bytes(b"y" + path.read_bytes()[1:])
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        return state

    state = spoil(large)
    read_manifest(folder, "toy")  # not read again
    os.utime(large, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"out/large: does not match its manifest \(SHA-256 differs\)"):
        read_manifest(folder, "toy")
    large.write_bytes(b"x" * 1000)
    read_manifest(folder, "toy")
    spoil(small)
    with pytest.raises(UserError, match=r"out/small: does not match its manifest \(SHA-256 differs\)"):
        read_manifest(folder, "toy")
    large.unlink()
    with pytest.raises(UserError, match=r"out/large: cannot be read \(No such file or directory\)"):
        read_manifest(folder, "toy")
