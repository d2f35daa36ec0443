"""The smoke experiment, run once for all tests that read its results; a file system that is really small."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, start
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that read the smoke experiment come last, file by file, since it runs beside the others."""
    readers = {item.path for item in items if reads_smoke(item)}
    items.sort(key=lambda item: item.path in readers)


def pytest_collection_finish() -> None:
    """What collecting has imported stays: garbage collectors need not look through it a thousand times."""
    gc.collect()
    gc.freeze()


def reads_smoke(item: pytest.Item) -> bool:
    return "smoke" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session", autouse=True)
def running_smoke(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """`hiar run smoke` in a copy of the project, begun beside the first tests if any needs it: the copy, its log."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one run for all workers, the first of which begins it
        folder = folder.parent
    project, log = folder / "smoke" / "project", folder / "smoke" / "log"
    session, run = request.session, None
    with FileLock(folder / "smoke.lock"):
        if not log.exists() and any(map(reads_smoke, session.items)):
            copy_project(project)
            with log.open("w") as output:
                # The command inherits the file, so it holds the lock for as long as it runs.
                fcntl.flock(output, fcntl.LOCK_EX)
                run = start("run", "smoke", folder=project, stdout=output, stderr=output)
    yield project, log
    if run and (session.shouldfail or session.shouldstop):
        run.terminate()
        run.wait()


@pytest.fixture(scope="session")
def smoke(running_smoke: tuple[Path, Path]) -> Path:
    """The workspace of `hiar run smoke` in a copy of the project; tests only read it, and copy what they change."""
    project, log = running_smoke
    with log.open() as output:
        fcntl.flock(output, fcntl.LOCK_SH)
    workspace = project / "runs" / "smoke"
    assert (workspace / "reports" / "index.html").exists(), log.read_text()
    return workspace


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
