"""The smoke experiment, run once for all tests that read its results; a file system that is really small."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, hiar
from filelock import FileLock
from hypothesis import HealthCheck, settings

# On a busy machine an example may take arbitrarily long.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Variables that the tested code sets in this process end with the test, or later commands could not be forked."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of `hiar run smoke` in a copy of the project; tests only read it, and copy what they change."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # run once for all workers: the first to ask runs it, the others wait
        shared = shared.parent
    project = shared / "smoke" / "project"
    with FileLock(shared / "smoke.lock"):
        if not project.exists():
            copy_project(project)
            hiar("run", "smoke", folder=project)
    return project / "runs" / "smoke"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of half a megabyte; skips the test where this user may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("a small file system needs the mount command")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def copy_project(to: Path) -> None:
    """Copy the project's files that git tracks or would add, without runs/ and dvc.lock."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", ":!runs", ":!dvc.lock"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
