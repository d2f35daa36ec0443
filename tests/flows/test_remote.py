"""Two copies of a project that share a remote: what one has made the other fetches."""

import shutil
import subprocess
from hashlib import md5
from pathlib import Path

import pytest

from flows.pipeline import reproduce, stale_stages
from flows.processes import ProcessGroups
from flows.remote import push, remote_of

STAGES = {"codec@0", "distill@0-hiar", "distill@0-self-forcing", "score"}


@pytest.fixture
def remote(project, tmp_path_factory):
    """The folder that is the remote of the project, which stores links where it can."""
    folder = tmp_path_factory.mktemp("remote")
    project.dvc("remote", "add", "--default", "store", str(folder))
    project.dvc("config", "cache.type", "reflink,hardlink,copy")
    return folder


def run(project, stages=None):
    """Run what is stale as the flow does, stage by stage; the lines it logged."""
    groups, lines = ProcessGroups(), []
    remote = remote_of(project.folder)
    for stage in stale_stages(project.folder):
        if stages is None or stage.name in stages:
            reproduce(project.folder, stage.name, groups, lines.append, remote=remote)
            push(remote, groups, lines.append, stage.name)
    push(remote, groups, lines.append)
    return lines


@pytest.fixture
def another(project, tmp_path_factory):
    """Makes a copy of the project on a machine that has none of its outputs and no cache."""

    def another(*, lock):
        folder = tmp_path_factory.mktemp("another")
        for path in project.folder.iterdir():
            if path.is_file() and path.name != "events.log" and (lock or path.name != "dvc.lock"):
                shutil.copy(path, folder)
        (folder / ".dvc").mkdir()
        shutil.copy(project.folder / ".dvc" / "config", folder / ".dvc")
        return type(project)(folder)

    return another


@pytest.mark.parametrize("lock", [True, False])
def test_what_was_made_elsewhere_is_fetched(project, remote, another, lock):
    run(project)
    assert project.begun("score") == 1
    other = another(lock=lock)
    run(other)
    assert other.events() == []
    assert stale_stages(other.folder) == []
    assert (other.folder / "dvc.lock").read_text() == (project.folder / "dvc.lock").read_text()
    summary = Path("metrics", "summary.json")
    assert (other.folder / summary).read_bytes() == (project.folder / summary).read_bytes()
