"""Copies of a project that share a remote: one fetches what another has made."""

import os
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5, sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from dvc.fs import LocalFileSystem
from dvc.repo import Repo

from flows.needed import _record
from flows.pipeline import reproduce, stale_stages
from flows.processes import ProcessGroups
from flows.remote import PUSHED, PUSHED_SECONDS, Remote, _copy_lock, _reason, push, remote_of
from hiar.errors import UserError
from hiar.workspace import open_workspace

SUMMARY = Path("metrics", "summary.json")


@pytest.fixture
def remote(project, tmp_path_factory):
    """The folder that is the project's remote; the project has two stages here."""
    folder = tmp_path_factory.mktemp("remote")
    project.change(compare={"init": [], "distill": []})
    with (project.folder / ".dvc" / "config").open("a") as config:
        config.write('    remote = store\n[cache]\n    type = "hardlink,copy"\n[\'remote "store"\']\n')
        config.write(f"    url = {folder}\n")
    return folder


def run(project, **options):
    """Run the stale stages one by one, as the flow does; returns the log lines."""
    groups, lines = ProcessGroups(), []
    remote = remote_of(project.folder)
    for stage in stale_stages(project.folder, **options):
        reproduce(project.folder, stage.name, groups, lines.append, remote=remote, **options)
    push(remote, groups, lines.append)
    return lines


def push_everything(project):
    return push(remote_of(project.folder), ProcessGroups(), print)


@pytest.fixture
def other_machine(project, tmp_path_factory):
    """Makes a copy of the project without outputs and cache, as on another machine."""

    def other_machine(*, lock):
        folder = tmp_path_factory.mktemp("another")
        for path in project.folder.iterdir():
            if path.is_file() and path.name != "events.log" and (lock or path.name != "dvc.lock"):
                shutil.copy(path, folder)
        (folder / ".dvc").mkdir()
        shutil.copy(project.folder / ".dvc" / "config", folder / ".dvc")
        return type(project)(folder)

    return other_machine


def test_outputs_made_elsewhere_are_fetched_and_damaged_ones_are_made_again(project, remote, other_machine):
    run(project)
    assert (project.times_begun("codec-0"), project.times_begun("score")) == (1, 1)
    assert len(list(remote.glob("locks/default/*"))) == 1  # for the whole run, not for its stages
    other = other_machine(lock=False)
    names = [path for place in ("runs", "locks") for path in (remote / place).rglob("*") if path.is_file()]
    for path in names:
        os.utime(path, (0, 0))
    run(other)
    assert other.events() == []
    assert len(names) == 3
    assert all(path.stat().st_mtime > 0 for path in names)  # marked as in use, so that no cleanup deletes them
    assert stale_stages(other.folder) == []
    assert (other.folder / "dvc.lock").read_text() == (project.folder / "dvc.lock").read_text()
    assert (other.folder / SUMMARY).read_bytes() == (project.folder / SUMMARY).read_bytes()
    damage(remote, project.folder / SUMMARY)
    third = other_machine(lock=True)
    run(third)
    assert third.events() == ["begin score", "end score"]
    assert (third.folder / SUMMARY).read_bytes() == (project.folder / SUMMARY).read_bytes()


def damage(remote, copy):
    """Change a byte of an object in the remote; its name stays."""
    name = md5(copy.read_bytes()).hexdigest()
    path = remote / "files" / "md5" / name[:2] / name[2:]
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-1] + b"!")


def test_an_unreachable_remote_is_reported_and_gets_everything_at_the_next_push(project, remote):
    remote.rmdir()
    remote.write_text("in the way of the folder")
    lines = run(project)
    assert project.times_begun("score") == 1
    assert len([line for line in lines if line.startswith("remote 'store': ")]) == 2  # tried again at the end
    assert not [line for line in lines if "Traceback" in line]
    assert not push_everything(project)
    remote.unlink()
    assert push_everything(project)
    for path in (project.folder / ".dvc" / "cache" / "files").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(project.folder / ".dvc" / "cache" / "files")
    assert push_everything(project)  # objects in the remote are not needed in the cache
    assert not [line for line in run(project) if line.startswith("remote")]
    locks = list(remote.glob("locks/default/*.lock"))
    assert [path.read_bytes() for path in locks] == [(project.folder / "dvc.lock").read_bytes()]
    assert len(list(remote.glob("runs/*/*/*"))) == 2
    assert run(project) == []


def test_a_read_only_remote_is_still_fetched_from_after_a_failed_push(project, remote, other_machine):
    """The failed push is reported once."""
    project.change(compare={"init": ["hiar"], "distill": []})
    run(project)
    other = other_machine(lock=False)
    other.change(codec={"other": 1})
    other.order("codec-0", "fill 50")
    closed = remote / "files" / "md5" / md5(b"codec-0".ljust(50)).hexdigest()[:2]
    closed.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", closed], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        groups, lines, remote_there = ProcessGroups(), [], remote_of(other.folder)
        for stage in stale_stages(other.folder):
            reproduce(other.folder, stage.name, groups, lines.append, remote=remote_there)
    finally:
        subprocess.run(["umount", "-l", closed], check=True)
    assert other.times_begun("codec-0") == other.times_begun("score") == 1
    assert other.times_begun("init-hiar") == 0
    (reported,) = [line for line in lines if line.startswith("remote")]
    assert reported.startswith("remote 'store': nothing more is pushed: ")
    assert push_everything(other)  # now that it is allowed


def test_objects_deleted_from_the_remote_are_pushed_again_after_a_while(project, remote):
    """`hiar storage gc` in another clone may delete objects whose lock has not been committed here yet."""
    run(project)
    stored = {path: path.read_bytes() for path in remote.glob("files/md5/*/*")}
    assert stored
    for path in stored:
        path.chmod(0o644)
        path.unlink()
    mark = project.folder / PUSHED
    long_ago = mark.stat().st_mtime - PUSHED_SECONDS - 1
    os.utime(mark, (long_ago, long_ago))
    assert push_everything(project)
    assert {path: path.read_bytes() for path in remote.glob("files/md5/*/*")} == stored
    assert mark.stat().st_mtime > long_ago  # and the period starts anew


def test_a_partial_push_or_a_lock_changed_meanwhile_does_not_count_as_pushed(project, remote):
    """No record is pushed without its data."""
    project.dvc("repro")
    name = md5((project.folder / "out" / "codec-0").read_bytes()).hexdigest()
    closed = remote / "files" / "md5" / name[:2]
    closed.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", closed], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        assert not push_everything(project)
    finally:
        subprocess.run(["umount", "-l", closed], check=True)
    assert list(remote.glob("files/md5/*/*"))  # the other objects
    assert not list(remote.glob("runs/*/*/*"))
    lock, reported = project.folder / "dvc.lock", []

    def report_and_change(line):
        reported.append(line)
        lock.write_text(lock.read_text() + "# changed\n")

    own = remote_of(project.folder)
    assert push(own, ProcessGroups(), report_and_change)
    assert reported
    assert not own.has(PUSHED)
    assert len(list(remote.glob("runs/*/*/*"))) == 2


def test_a_push_that_fails_at_the_end_marks_the_remote_as_away(tmp_path):
    """So that no link of the run leads there."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    remote = nowhere\n")
    own, lines = remote_of(tmp_path), []
    assert not push(own, ProcessGroups(), lines.append)
    (line,) = lines
    assert line.startswith("remote 'nowhere': nothing more is pushed: ")
    assert own.away
    assert not own.has(PUSHED)


def test_an_object_missing_everywhere_does_not_count_as_pushed(project, remote, capsys):
    """The rest is pushed, but not the lock, which would claim completeness; the suggested remedy works."""
    project.dvc("repro")
    name = md5((project.folder / "out" / "codec-0").read_bytes()).hexdigest()
    lost = Path("files", "md5", name[:2], name[2:])
    (project.folder / ".dvc" / "cache" / lost).unlink()
    assert not push_everything(project)
    assert "1 of 3 objects are neither there nor in DVC's cache; `dvc commit --force`" in capsys.readouterr().out
    assert len(list(remote.glob("files/md5/*/*"))) == 2
    assert not list(remote.glob("locks/*/*"))
    assert not remote_of(project.folder).has(PUSHED)
    project.dvc("commit", "--force")
    assert push_everything(project)
    assert (remote / lost).is_file()


def test_a_changed_lock_or_config_does_not_count_as_pushed(tmp_path):
    """Including the user's config.local."""
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    for name in ("dvc.lock", ".dvc/config"):
        (tmp_path / name).write_text("before")
    remote = Remote(tmp_path, "store")
    assert not remote.has(PUSHED)
    for name in ("dvc.lock", ".dvc/config", ".dvc/config.local"):
        (tmp_path / PUSHED).write_text(remote.state())
        assert remote.has(PUSHED)
        (tmp_path / name).write_text("after")
        assert not remote.has(PUSHED)


def test_a_lock_is_stored_under_the_name_of_its_experiment(tmp_path):
    store = SimpleNamespace(fs=LocalFileSystem(), path=str(tmp_path / "remote" / "files" / "md5"))
    (tmp_path / "project" / ".dvc").mkdir(parents=True)
    for folder in ("project/runs/mine", "project", "other/runs/mine"):  # the last is a separate project
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "dvc.lock").write_text(folder)
        _copy_lock(tmp_path / folder / "dvc.lock", store)
    kept = {(path.parent.name, path.read_text()) for path in tmp_path.glob("remote/locks/*/*.lock")}
    assert kept == {("mine", "project/runs/mine"), ("default", "project"), ("default", "other/runs/mine")}
    assert all(path.stem == sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("remote/locks/*/*"))


def test_an_error_of_a_remote_is_a_line_without_a_password():
    try:
        raise OSError("") from ConnectionError("http://me:hidden@127.0.0.1:9/x:\n  refused")
    except OSError as error:
        assert _reason(error) == "http://127.0.0.1:9/x: refused"
    assert _reason(TimeoutError()) == "TimeoutError"


def test_stages_that_run_again_change_no_object_in_the_cache(project, remote, monkeypatch):
    """Though outputs are hard links into it."""
    for size in (10, 50, 100):
        project.order("codec-0", f"fill {size}")
        project.dvc("repro", "--force", "codec@0")
    assert (project.folder / "out" / "codec-0").stat().st_nlink == 2
    objects = [path for path in (project.folder / ".dvc" / "cache" / "files").rglob("*") if path.is_file()]
    names = {path.parent.name + path.name for path in objects}
    assert len(names) == 3
    assert names == {md5(path.read_bytes()).hexdigest() for path in objects}
    # The remote has the last of the three, and no record of objects that it lacks.
    assert push_everything(project)
    (record,) = [yaml.safe_load(path.read_text()) for path in remote.glob("runs/*/*/*")]
    (kept,) = [path.parent.name + path.name for path in remote.glob("files/md5/*/*")]
    assert record["outs"][0]["md5"] == kept == md5((project.folder / "out" / "codec-0").read_bytes()).hexdigest()
    # Other stages get the latest output of the same inputs, too.
    monkeypatch.chdir(project.folder)
    with Repo() as repo:
        (stage,) = repo.stage.collect("codec@0")
        stage.save_deps()
        assert _record(repo.stage_cache, stage) == record


def test_a_workspace_has_the_remotes_of_its_project(project, tmp_path):
    """Relative ones too, from both config files; nothing is written if nothing has changed."""
    from dvc.config import Config

    (project.folder / "experiments").mkdir()
    (project.folder / "experiments" / "small.yaml").write_text("seeds: [1]\n")
    config = project.folder / ".dvc" / "config"
    config.write_text(config.read_text() + "    remote = near\n['remote \"near\"']\n    url = ../beside\n")
    local = project.folder / ".dvc" / "config.local"
    local.write_text("['remote \"near\"']\n    jobs = 3\n")
    workspace = open_workspace(project.folder, "small")
    config_there = Config(str(workspace / ".dvc"))
    assert config_there["core"]["remote"] == "near"
    assert config_there["remote"]["near"].items() >= {"url": str(project.folder / "beside"), "jobs": 3}.items()
    assert Path(config_there["cache"]["dir"]) == project.folder / ".dvc" / "cache"
    assert "beside" not in (workspace / ".dvc" / "config.local").read_text()
    assert str(project.folder) not in (workspace / ".dvc" / "config").read_text()
    assert (workspace / "dvc.yaml").read_bytes() == (project.folder / "dvc.yaml").read_bytes()
    (workspace / "dvc.yaml").unlink()
    (workspace / "dvc.yaml").symlink_to("../../dvc.yaml")  # DVC does not read links from commits
    (workspace / "hiar").unlink()
    (workspace / "hiar").symlink_to(tmp_path)  # where the code used to be
    open_workspace(project.folder, "small")
    assert not (workspace / "dvc.yaml").is_symlink()
    assert (workspace / "hiar").readlink() == Path("..", "..", "hiar")
    before = (workspace / ".dvc" / "config").stat()
    open_workspace(project.folder, "small")
    assert (workspace / ".dvc" / "config").stat() == before
    for name in ("config", "config.local"):
        (workspace / ".dvc" / name).write_text("[core\n")  # as left by a kill
        open_workspace(project.folder, "small")
        assert Config(str(workspace / ".dvc"))["core"]["remote"] == "near"
        assert Config(str(workspace / ".dvc"))["remote"]["near"]["jobs"] == 3
    config.write_text("[core\n")
    with pytest.raises(UserError, match=r"\.dvc/config: .*; fix it"):
        open_workspace(project.folder, "small")


def test_stages_that_begin_at_once_open_one_workspace(project):
    """As on another machine, whose clone has no workspace yet."""
    (project.folder / "experiments").mkdir()
    (project.folder / "experiments" / "small.yaml").write_text("seeds: [1]\n")
    together = threading.Barrier(8)

    def begin(_):
        together.wait()
        return open_workspace(project.folder, "small")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(begin, range(8))) == {project.folder / "runs" / "small"}


def test_a_stage_fetches_the_outputs_it_needs_of_stages_that_ran_elsewhere(project, remote, other_machine):
    """Four machines that share only the remote run one stage each."""
    groups, lines = ProcessGroups(), []

    def run_one(machine, stage):
        own = remote_of(machine.folder)
        reproduce(machine.folder, stage, groups, lines.append, remote=own)

    project.change(compare={"init": [], "distill": ["hiar"], "walked": []})
    project.order("codec-0", "fill 1000")
    with (project.folder / "dvc.yaml").open("a") as pipeline:
        pipeline.write("  last:\n    cmd: python stage.py last\n    deps: [out/distill-0-hiar]\n    outs: [out/last]\n")
    machines = [other_machine(lock=False) for _ in range(4)]
    (machines[0].folder / "orders").mkdir()
    shutil.copy(project.folder / "orders" / "codec-0", machines[0].folder / "orders")
    (machines[1].folder / "out").mkdir()
    (machines[1].folder / "out" / "codec-0").write_text("of another day")
    for machine, stage in zip(machines, ("codec@0", "distill@0-hiar", "last", "score"), strict=True):
        run_one(machine, stage)
    assert [machine.events() for machine in machines] == [
        ["begin codec-0", "end codec-0"],
        ["begin distill-0-hiar", "end distill-0-hiar"],
        ["begin last", "end last"],
        ["begin score", "end score"],
    ]
    made = (machines[0].folder / "out" / "codec-0").read_text()
    assert [(machine.folder / "out" / "codec-0").read_text() for machine in (machines[1], machines[3])] == [made] * 2
    assert len(made) == 1000
    here = {path.name for path in (machines[2].folder / "out").iterdir()}
    assert here == {"distill-0-hiar", "last"}  # but not the inputs of its inputs
    assert not list(remote.glob("locks/*/*"))  # no machine has run the whole experiment
