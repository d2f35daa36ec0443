"""Which objects are referenced, as far as can be tested without a store."""

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


def named(runs):
    return {(run.experiment, out["md5"][0]) for run in runs for out in run.outs()}


def test_every_commit_of_every_branch_names_what_it_needs(clone):
    assert named(runs_committed(clone)) == {("default", "a"), ("default", "b"), ("x", "c")}
    lock(clone / "runs" / "y" / "dvc.lock", "c")
    assert named(runs_here(clone)) == {("default", "d"), ("y", "c")}


def test_what_a_merge_alone_brings_is_named(clone):
    """As when two branches have run the same experiment, and it was run again on the merge of both."""
    git(clone, "checkout", "--quiet", "--force", "main")
    git(clone, "merge", "--quiet", "--no-ff", "--no-commit", "two")
    lock(clone / "dvc.lock", "d")
    git(clone, "commit", "--quiet", "--all", "--message", "merge")
    assert ("default", "d") in named(runs_committed(clone))


def test_what_takes_the_place_of_another_experiment_is_named(clone):
    """If one file is deleted and a similar one added, git reports a rename unless told not to."""
    git(clone, "checkout", "--quiet", "--force", "two")
    git(clone, "rm", "--quiet", "runs/x/dvc.lock")
    lock(clone / "runs" / "y" / "dvc.lock", "d")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "another")
    assert {("x", "c"), ("y", "d")} <= named(runs_committed(clone))


def test_a_clone_without_history_is_not_taken_for_all_there_is(clone, tmp_path):
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{clone}", str(shallow)], check=True)
    with pytest.raises(UserError, match="git fetch --unshallow"):
        runs_committed(shallow)
    with pytest.raises(UserError, match="run this in a clone"):
        runs_committed(Path("/"))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"- a", b"stages: 3", b"stages: [", b"\xff\xfe", b"a: !!python/object x"]
)
def test_a_lock_that_is_none(clone, content):
    (clone / "dvc.lock").write_bytes(content)
    with pytest.raises(UserError, match=r"dvc\.lock: is not a dvc\.lock; restore it"):
        runs_here(clone)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'[{"md5": "a"}]', b"null"])
def test_a_damaged_list_of_a_folder_s_files(data):
    assert members(data) is None


def test_a_project_without_a_remote(clone):
    (clone / ".dvc").mkdir()
    said = hiar("storage", "verify", folder=clone, code=2).stderr
    assert said.startswith("error: .dvc/config: names no remote; add one, as in dvc remote add --default store s3://")
    assert "Traceback" not in said
