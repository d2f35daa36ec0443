"""Bad input on the command line: one line that names the problem, exit code 2, and existing files are untouched.

Mistakes that need no artifacts (in parameters, geometries, variants, prompt files) are in test_cli.py.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from commands import copy_artifacts, hiar
from safetensors.torch import load_file, save_file

from hiar.io.artifacts import write_manifest

PROMPT = "a red disc moves quickly right on a black background"
ROOM = 300_000  # bytes left on a full disk: less than the largest file that is written to it


def mistake(*arguments, folder):
    """The one error line of a command; lines of progress before it are skipped."""
    run = hiar(*arguments, folder=folder, code=2, HIAR_TRACKING="off")
    assert run.stdout == ""
    progress = re.compile(
        r"walk: |.*: \d+/\d+( frames)? in \d\d:\d\d|.*: what is there is replaced when "
    )  # before the mistake was found
    (line,) = [line for line in run.stderr.splitlines() if not progress.match(line)]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def sample(work, *options, checkpoint="init", frames=6):
    checkpoint = f"artifacts/seed-0/{checkpoint}"
    return mistake(
        *("sample", "--checkpoint", checkpoint, "--prompt", PROMPT, "--frames", frames, *options), folder=work
    )


def contents(folder):
    """The bytes of every file below a folder, without unfinished work (.partial)."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".partial/" not in str(path)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def copy_smoke(smoke):
    """Copies the parameters and trained artifacts of the smoke experiment to a folder, for a test to change."""

    def copy_smoke(folder):
        for name in ("codec", "teacher", "pairs", "init"):
            copy_artifacts(smoke / "artifacts" / "seed-0" / name, folder / "artifacts" / "seed-0" / name)
        shutil.copy(smoke / "params.yaml", folder)
        return folder

    return copy_smoke


@pytest.fixture
def work(copy_smoke, tmp_path):
    return copy_smoke(tmp_path / "work")


@pytest.fixture
def artifacts(work):
    return work / "artifacts" / "seed-0"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda shard: shard.unlink(), "cannot be read (No such file or directory)"),
        (lambda shard: shard.write_bytes(shard.read_bytes()[:-100]), "size = "),
    ],
    ids=["missing", "truncated"],
)
def test_a_missing_or_truncated_shard_is_refused(work, artifacts, spoil, complaint):
    spoil(artifacts / "pairs" / "00001.safetensors")
    before = contents(work)
    line = mistake("stage", "init", "--seed", 0, folder=work)
    assert line.startswith(f"artifacts/seed-0/pairs/00001.safetensors: {complaint}")
    assert line.endswith("; run the stage that makes it again, or name another folder")
    assert contents(work) == before
    assert not list(work.rglob("*.partial"))


@pytest.mark.parametrize(
    ("old", "new", "command", "line"),
    [
        (
            "frames: 15",
            "frames: 30",
            ["init"],
            "teacher/manifest.json: video.frames = 15: params.yaml says 30; run stage",
        ),
        (
            "block: 3",
            "block: 5",
            ["sample", "--model", "init", "--variant", "hiar"],
            "init/manifest.json: video.block = 3: params.yaml says 5; run stage init again",
        ),
    ],
)
def test_artifacts_that_differ_from_the_parameters_are_refused(work, old, new, command, line):
    path = work / "params.yaml"
    text = path.read_text()
    assert text.count(f"  {old}\n") == 1
    path.write_text(text.replace(f"  {old}\n", f"  {new}\n"))
    before = contents(work)
    assert mistake("stage", *command, "--seed", 0, folder=work).startswith(f"artifacts/seed-0/{line}")
    assert contents(work) == before
    assert not list(work.rglob("*.partial"))


def widen(path, **config):
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def lose_a_matrix(checkpoint):
    (path,) = (checkpoint / "transformer").glob("*.safetensors")
    tensors = load_file(path)
    del tensors["proj_out.weight"]
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda c: widen(c / "codec" / "config.json", channels=5), "codec/codec.safetensors: does not fit config.json"),
        (lambda c: widen(c / "transformer" / "config.json", ffn_dim=128), "transformer: cannot be loaded (Cannot load"),
        (lose_a_matrix, "transformer: cannot be loaded (missing weights: proj_out.weight)"),
    ],
    ids=["codec", "width", "matrix"],
)
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(work, artifacts, spoil, line):
    spoil(artifacts / "init")
    write_manifest(artifacts / "init", "checkpoint")  # else the old manifest would report the change
    before = contents(work)
    error = sample(work, "--out", "out")
    assert error.startswith(f"artifacts/seed-0/init/{line}")
    assert "again" in error
    assert contents(work) == before
    assert not list(work.rglob("*.partial"))


def test_other_artifacts_and_incomplete_blocks_are_refused(work):
    line = sample(work, "--out", "out", checkpoint="pairs")
    assert line.startswith("artifacts/seed-0/pairs/manifest.json: kind = 'pairs': should be 'checkpoint'; name a")
    line = sample(work, "--out", "out", frames=7)
    assert line == "--frames = 7: must be a positive multiple of the block of 3 frames; try 6"
    assert not list(work.glob("out*"))


def test_outputs_never_replace_files_that_are_no_artifact(work, smoke):
    (work / "file").write_text("of somebody")
    (work / "folder").mkdir()
    (work / "folder" / "letter.txt").write_text("of somebody")
    before = contents(work)
    below = "not a directory; a part of this path is a file; choose another place"
    assert sample(work, "--out", "file/out") == f"file/out: {below}"
    line = sample(work, "--out", "folder")
    assert line.startswith("folder: holds files but no manifest.json, so it is not an artifact to replace; choose")
    videos = smoke / "artifacts" / "seed-0" / "samples" / "distill" / "hiar"
    assert mistake("score", videos, "--out", "file/score.json", folder=work) == f"file/score.json: {below}"
    assert contents(work) == before
    assert not list(work.rglob("*.partial"))


def mount(*arguments):
    """Call `mount`; returns whether it succeeded."""
    try:
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def read_only(folder):
    """Make a folder read-only; for root by a mount, because permission bits do not stop root."""
    if os.geteuid() == 0:
        if not mount("--bind", folder, folder):
            pytest.skip("root that may not mount writes everywhere")
        try:
            assert mount("-o", "remount,bind,ro", folder)
            yield
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    else:
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)


def test_a_read_only_workspace_is_named(work, artifacts):
    before = contents(work)
    with read_only(artifacts):
        line = mistake("stage", "pairs", "--seed", 0, folder=work)
    assert line.startswith("artifacts/seed-0/pairs.partial: ")
    assert line.endswith("or choose another place")
    assert contents(work) == before
    assert not list(work.rglob("*.partial"))


@pytest.fixture
def disk(tmp_path):
    """A folder; where this user may mount, a file system of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", disk)
    yield disk
    if mounted:
        subprocess.run(["umount", "-l", disk], check=True)


@contextmanager
def little_room(disk):
    """Leave ``ROOM`` bytes on the disk."""
    state, filler = os.statvfs(disk), disk / "filler"
    filler.write_bytes(bytes(state.f_bavail * state.f_frsize - ROOM))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def small_files():
    """Limit each file to ``ROOM`` bytes: writes fail as on a disk that others fill in the meantime."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_stage_on_a_full_disk_keeps_the_old_artifact(disk, copy_smoke):
    copy_smoke(disk)
    pairs = disk / "artifacts" / "seed-0" / "pairs"
    before = contents(disk)
    if disk.is_mount():
        with little_room(disk):
            line = mistake("stage", "pairs", "--seed", 0, folder=disk)
        assert line.startswith("artifacts/seed-0/pairs.partial: needs 0.00")
        assert line.endswith("free some space or choose another place")
        assert contents(disk) == before
    with small_files():
        line = mistake("stage", "pairs", "--seed", 0, folder=disk)
    assert line.startswith("artifacts/seed-0/pairs.partial/00000.safetensors: ")
    assert line.endswith("run again")
    assert contents(disk) == before
    assert not (pairs.with_name("pairs.partial") / "manifest.json").exists()
    hiar("stage", "pairs", "--seed", 0, folder=disk, HIAR_TRACKING="off")  # once there is space
    assert contents(pairs).keys() == {"00000.safetensors", "00001.safetensors", "captions.txt", "manifest.json"}


def test_sampling_on_a_full_disk_keeps_the_old_videos(disk, work, smoke):
    copy_artifacts(smoke / "artifacts" / "seed-0" / "samples" / "init" / "hiar", disk / "out")
    before = contents(disk)
    if disk.is_mount():
        with little_room(disk):
            line = sample(work, "--out", disk / "out", "--save-latents", frames=330)
        assert line.startswith("--frames = 330: the latents take 0.000")
        assert line.endswith("GB are free on the disk; ask for fewer, or watch one video with `hiar stream`")
        assert contents(disk) == before
    with small_files():
        line = sample(work, "--out", disk / "out", "--save-latents", frames=330)
    assert line.startswith(f"{disk}/out.partial/.latents/00000.safetensors: ")
    assert line.endswith("run again")
    assert contents(disk) == before
    assert not (disk / "out.partial" / "manifest.json").exists()
