"""Which objects a clone's commits and working tree reference, as far as can be tested without a store."""

import subprocess
from pathlib import Path

import pytest
import yaml
from commands import hiar

from hiar.errors import UserError
from hiar.storage.runs import members, runs_committed, runs_here

NAMES = {name: f"{name}{0:031}" for name in "abcd"}


def lock(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    outs = [{"path": "artifacts/x", "md5": f"{NAMES[name]}.dir"}, {"path": "y", "md5": "../../escape"}, "nonsense"]
    path.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"x": {"cmd": "x", "outs": outs}}}))


def git(folder, *arguments):
    who = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def clone(tmp_path):
    """Locks a, b and c are committed, b and c on their own branches; d is only in the working tree."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    for branch, path, name in (("main", "dvc.lock", "a"), ("one", "dvc.lock", "b"), ("two", "runs/x/dvc.lock", "c")):
        if branch != "main":
            git(tmp_path, "checkout", "--quiet", "-b", branch)
        lock(tmp_path / path, name)
        git(tmp_path, "add", "--all")
        git(tmp_path, "commit", "--quiet", "--message", name)
    git(tmp_path, "checkout", "--quiet", "main")
    lock(tmp_path / "dvc.lock", "d")
    return tmp_path


def referenced(runs):
    return {(run.experiment, out["md5"][0]) for run in runs for out in run.outs()}


def test_locks_of_all_commits_of_all_branches_count(clone):
    assert referenced(runs_committed(clone)) == {("default", "a"), ("default", "b"), ("x", "c")}
    lock(clone / "runs" / "y" / "dvc.lock", "c")
    assert referenced(runs_here(clone)) == {("default", "d"), ("y", "c")}


def test_a_lock_that_only_a_merge_commit_has_counts(clone):
    """As when two branches ran the same experiment, and it ran again on their merge."""
    git(clone, "checkout", "--quiet", "--force", "main")
    git(clone, "merge", "--quiet", "--no-ff", "--no-commit", "two")
    lock(clone / "dvc.lock", "d")
    git(clone, "commit", "--quiet", "--all", "--message", "merge")
    assert ("default", "d") in referenced(runs_committed(clone))


def test_a_lock_that_git_takes_for_a_rename_counts(clone):
    """As git does by default if one file is deleted and a similar one added."""
    git(clone, "checkout", "--quiet", "--force", "two")
    git(clone, "rm", "--quiet", "runs/x/dvc.lock")
    lock(clone / "runs" / "y" / "dvc.lock", "d")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "another")
    assert {("x", "c"), ("y", "d")} <= referenced(runs_committed(clone))


def test_a_lock_whose_name_git_would_quote_counts(clone):
    """Otherwise gc would delete what a commit references."""
    for name, experiment in (("b", "größe"), ("c", 'a "b"')):
        lock(clone / "runs" / experiment / "dvc.lock", name)
        (clone / "runs" / experiment / "dvc.lock").open("a").write("# another content\n")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "odd names")
    assert {("größe", "b"), ('a "b"', "c"), ("default", "d"), ("x", "c")} <= referenced(runs_committed(clone))


def test_a_shallow_clone_is_refused(clone, tmp_path):
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{clone}", str(shallow)], check=True)
    with pytest.raises(UserError, match="git fetch --unshallow"):
        runs_committed(shallow)
    with pytest.raises(UserError, match="run this in a clone"):
        runs_committed(Path("/"))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"- a", b"stages: 3", b"stages: [", b"\xff\xfe", b"a: !!python/object x"]
)
def test_an_invalid_lock_is_refused(clone, content):
    (clone / "dvc.lock").write_bytes(content)
    with pytest.raises(UserError, match=r"dvc\.lock: is not a dvc\.lock; restore it"):
        runs_here(clone)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'[{"md5": "a"}]', b"null"])
def test_a_damaged_folder_list_has_no_members(data):
    assert members(data) is None


def test_a_project_without_a_remote_is_one_line(clone):
    (clone / ".dvc").mkdir()
    line = hiar("storage", "verify", folder=clone, code=2).stderr
    assert line.startswith("error: .dvc/config: names no remote; add one, as in dvc remote add --default store s3://")
    assert "Traceback" not in line
