"""Outputs that are no regular files, system errors, and folders that hold more than what would be replaced."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import environment

from hiar.io.video import read_mp4

SAMPLE = ("sample", "--prompt", "a red disc moves left", "--frames", 6, "--checkpoint")
STREAM = ("stream", "--prompt", "a red disc moves left", "--frames", 6, "--checkpoint")
SCORE = ("score", "videos", "--out")


@pytest.fixture
def figures(project):
    """Checks the figures that scoring wrote."""

    def check(text):
        assert json.loads(text)["oracle"]["videos"] == 3

    return check


def start_reading(path):
    """A thread that reads a pipe to its end, and the list of what it has read."""
    received = []
    thread = threading.Thread(target=lambda: received.append(Path(path).read_bytes()), daemon=True)
    thread.start()
    return thread, received


def test_figures_go_to_the_standard_output(run, figures):
    figures(run(*SCORE, "-"))
    figures(run(*SCORE, "/dev/stdout"))
    assert sorted(os.listdir()) == ["params.yaml", "videos"]


def test_figures_and_streams_go_through_pipes_and_links_to_them(run, figures, student):
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    thread, received = start_reading("pipe")
    run(*SCORE, "link")
    thread.join()
    figures(received[0])
    thread, received = start_reading("pipe")
    run(*STREAM, student, "--out", "link")
    thread.join()
    Path("v.mp4").write_bytes(received[0])
    assert len(read_mp4(Path("v.mp4"))) == 6
    assert Path("pipe").is_fifo()
    assert Path("link").readlink() == Path("pipe")


def test_figures_go_to_process_substitutions_and_appended_files(project, figures):
    """Process substitution, and a file that the shell has opened to append to."""
    command = f"{sys.executable} -m hiar score videos --out >(cat > caught); echo before > log; \
        {sys.executable} -m hiar score videos --out /dev/fd/7 7>> log; wait"
    subprocess.run(["bash", "-c", command], cwd=project, env=environment(), check=True, capture_output=True)
    figures(Path("caught").read_text())
    before, _, after = Path("log").read_text().partition("\n")
    assert before == "before"
    figures(after)


@pytest.mark.parametrize("there", [True, False], ids=["file", "nothing yet"])
def test_a_link_stays_and_its_target_is_replaced(there, run, figures, student):
    os.mkdir("elsewhere")
    for name in ("score.json", "v.mp4"):
        os.symlink(f"elsewhere/{name}", name)
        if there:
            Path(name).write_text("of before")
    figures((run(*SCORE, "score.json"), Path("elsewhere/score.json").read_text())[1])
    run(*STREAM, student, "--out", "v.mp4")
    assert len(read_mp4(Path("elsewhere/v.mp4"))) == 6
    assert [Path(name).is_symlink() for name in ("score.json", "v.mp4")] == [True, True]
    assert sorted(os.listdir("elsewhere")) == ["score.json", "score.videos.jsonl", "v.mp4"]


def test_a_link_to_a_folder_stays_and_the_folder_is_replaced(run, student):
    os.mkdir("disk")
    os.symlink("disk/out", "out")
    for prompt in ("a red disc moves left", "a blue disc moves left"):
        run(*SAMPLE[:2], prompt, *SAMPLE[3:], student, "--out", "out")
        assert Path("out").readlink() == Path("disk/out")
        assert Path("disk/out/captions.txt").read_text() == f"{prompt}\n"
    assert os.listdir("disk") == ["out"]


def test_crf_decides_the_quality_of_videos(run, student):
    found = []
    for crf in (1, 51):
        run(*STREAM, student, "--out", "v.mp4", "--crf", crf)
        run(*SAMPLE, student, "--out", "out", "--crf", crf)
        found.append([Path(name).stat().st_size for name in ("v.mp4", "out/0000.mp4")])
    fine, coarse = found
    assert all(large > 2 * small for large, small in zip(fine, coarse, strict=True))


def test_a_device_is_written_to(run, student):
    try:
        os.mknod("null", stat.S_IFCHR | 0o666, os.stat(os.devnull).st_rdev)
    except PermissionError:
        pytest.skip("only root may make devices")
    before = os.stat("null")
    run(*SCORE, "null")
    run(*STREAM, student, "--out", "null")
    assert (os.stat("null").st_ino, os.stat("null").st_rdev) == (before.st_ino, before.st_rdev)


def test_a_stream_is_not_written_to_a_terminal(mistake):
    reader, terminal = os.openpty()
    name = os.ttyname(terminal)
    line = mistake(*STREAM, "nowhere", "--out", name)
    assert line == f"--out = {name}: is a terminal; name a file, or pipe it to a player, such as | ffplay -"
    os.close(reader)
    os.close(terminal)


def make_bad_outputs():
    """Names that cannot be written to, each with its error line."""
    os.mkdir("folder")
    os.symlink("loop", "loop")
    os.symlink("nowhere/x", "dangling")
    Path("file").touch()
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind("socket")
    return {
        "": "--out = '': is empty; name a file, or - for the standard output",
        ".": "--out = .: is a folder; name a file in it",
        "folder": "--out = folder: is a folder; name a file in it",
        "new/": "--out = new/: is a folder; name a file in it",
        "nowhere/x.json": "--out = nowhere/x.json: there is no folder nowhere; make it or choose another place",
        "dangling": f"--out = dangling: there is no folder {Path.cwd()}/nowhere; make it or choose another place",
        "file/x.json": "file/x.json: not a directory; a part of this path is a file; choose another place",
        "loop": "loop: too many levels of symbolic links; the link leads back to itself; choose another place",
        "loop/x": "loop/x: too many levels of symbolic links; the link leads back to itself; choose another place",
        "socket": "--out = socket: is a socket; name a file or a pipe",
        "/dev/fd/99": "--out = /dev/fd/99: is not open; name a file",
        "x" * 252: f"{'x' * 252}: file name too long; choose a shorter name",
    }


@pytest.mark.parametrize("command", [("score", "nowhere"), (*STREAM, "nowhere")], ids=["score", "stream"])
def test_an_impossible_output_file_is_refused_before_any_work(command, mistake):
    for name, line in make_bad_outputs().items():
        assert mistake(*command, "--out", name) == line


def test_an_impossible_output_folder_is_refused_before_any_work(mistake):
    make_bad_outputs()
    os.mkfifo("pipe")
    for name, line in {
        "": ".: would be replaced as a whole; choose a folder below it",
        "-": "--out = -: a folder cannot be written to the standard output; name one",
        "videos/..": "videos/..: would be replaced as a whole; choose a folder below it",
        "nowhere/out": "--out = nowhere/out: there is no folder nowhere; make it or choose another place",
        "dangling": f"--out = dangling: there is no folder {Path.cwd()}/nowhere; make it or choose another place",
        "loop": "loop: too many levels of symbolic links; the link leads back to itself; choose another place",
        "loop/out": "loop: too many levels of symbolic links; the link leads back to itself; choose another place",
        "file": "file: file exists; a file has this name; choose another",
        "pipe": "pipe: file exists; a file has this name; choose another",
        "file/out": "file/out: not a directory; a part of this path is a file; choose another place",
        "/proc": "/proc: is mounted, so it cannot be replaced as a whole; choose a folder below it",
        "x" * 245: f"{'x' * 245}.old.partial: file name too long; choose a shorter name",
    }.items():
        assert mistake(*SAMPLE, "nowhere", "--out", name) == line
        if name not in ("", "-"):
            assert mistake(*SAMPLE, "nowhere", "--processes", 2, "--out", name) == line


def test_a_mounted_output_is_refused_before_any_work(mistake):
    """Such as a container's volume; here on the same disk, so that device numbers do not reveal it."""
    shutil.copytree("videos", "a folder")
    for name in ("kept", "score.json"):
        Path(name).touch()
    command = "mount --bind kept score.json && mount --bind 'a folder' 'a folder'"
    mounted = subprocess.run(["bash", "-c", command], capture_output=True).returncode == 0
    try:
        if not mounted:
            pytest.skip("this user may not mount")
        line = "--out = score.json: is mounted, so it cannot be replaced; name another file"
        assert mistake("score", "nowhere", "--out", "score.json") == line
        line = "a folder: is mounted, so it cannot be replaced as a whole; choose a folder below it"
        assert mistake(*SAMPLE, "nowhere", "--out", "a folder") == line
    finally:
        subprocess.run(["umount", "score.json", "a folder"], capture_output=True)


def test_unreadable_inputs_and_link_loops_are_named(mistake, student, project):
    os.symlink("loop", "loop")
    sample = (*SAMPLE[:1], *SAMPLE[3:])
    loop = "cannot be read (Too many levels of symbolic links)"
    assert mistake(*sample, student, "--prompts", "loop", "--out", "out").startswith(f"loop: {loop}; name a text file")
    assert mistake(*sample, student, "--prompts", "params.yaml/x", "--out", "out").startswith(
        "params.yaml/x: cannot be read (Not a directory)"
    )
    assert mistake(*SAMPLE, "loop", "--out", "out").startswith(f"loop/manifest.json: {loop}; run the stage")
    for name in ("captions.txt", "manifest.json"):
        os.rename(f"videos/{name}", f"{name}.kept")
        os.symlink(name, f"videos/{name}")
        assert mistake(*SCORE, "x.json").startswith(f"videos/{name}: {loop}")
        os.replace(f"{name}.kept", f"videos/{name}")
    shutil.copytree(student, "student")
    os.remove("student/generator.json")
    os.mkdir("student/generator.json")
    manifest = json.loads(Path("student/manifest.json").read_text()) | {"files": {}}
    Path("student/manifest.json").write_text(json.dumps(manifest))
    assert mistake(*SAMPLE, "student", "--out", "out").startswith("student/generator.json: cannot be read (Is a dir")
    os.remove("params.yaml")
    os.symlink("params.yaml", "params.yaml")
    assert mistake("config", "check").startswith(f"params.yaml: {loop}; fix that or name another file")
    assert mistake(*SCORE, "x.json").startswith(f"params.yaml: {loop}")


def test_a_full_standard_output_is_one_error_line(project):
    """Python buffers its output until it exits: even then, a full disk is one error line."""
    for command in (["config", "show"], ["score", "videos", "--out", "-"], ["--help"]):
        with open("/dev/full", "w") as full:
            run = subprocess.run(
                [sys.executable, "-m", "hiar", *command], env=environment(), stdout=full, stderr=-1, text=True
            )
        assert run.returncode == 2
        assert run.stderr.splitlines()[-1] == "error: output: no space left on device; free some space and run again"
        assert "Exception" not in run.stderr


def test_a_closed_output_is_named_and_a_reader_that_leaves_early_is_no_error(project):
    hiar = f"{sys.executable} -m hiar"
    for command, line in {
        f"{hiar} score nowhere --out - >&-": "--out = -: is not open; name a file",
        f"{hiar} stream --checkpoint nowhere --prompt x --out - >&-": "--out = -: is not open; name a file",
        f"{hiar} score nowhere --out /dev/fd/5 5< params.yaml": "--out = /dev/fd/5: is open for reading only; name a "
        "file",
    }.items():
        script = ["bash", "-o", "pipefail", "-c", command]
        run = subprocess.run(script, env=environment(), capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (2, f"error: {line}\n")
    script = ["bash", "-o", "pipefail", "-c", f"{hiar} config show | true"]  # the reader stops early: no error
    run = subprocess.run(script, env=environment(), capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "")


@pytest.mark.parametrize(
    ("put", "name"),
    [
        (lambda: Path("out/score.json").write_text("{}"), "score.json"),
        (lambda: Path("out/.notes").write_text("mine"), ".notes"),
        (lambda: os.symlink("../videos", "out/videos"), "videos"),
        (lambda: (os.mkdir("out/more"), Path("out/more/0000.mp4").write_text("mine")), "more/0000.mp4"),
    ],
    ids=["figures", "hidden", "link", "below"],
)
def test_samples_beside_foreign_files_are_not_replaced(put, name, mistake):
    shutil.copytree("videos", "out")
    put()
    for processes in ((), ("--processes", 2)):
        assert mistake(*SAMPLE, "nowhere", "--out", "out", *processes) == (
            f"out/{name}: does not belong to the samples in out and would be deleted with it; move it away or choose "
            "a new folder"
        )


def test_an_artifact_beside_foreign_files_is_not_replaced_by_its_stage(mistake):
    folder = Path("artifacts/seed-0/codec")
    shutil.copytree("videos", folder)
    (folder / "notes.txt").write_text("mine")
    assert mistake("stage", "codec", "--seed", 0).startswith(f"{folder}/notes.txt: does not belong to the samples")


def test_samples_scored_as_the_help_shows_can_be_made_again(run, student):
    run(*SAMPLE, student, "--out", "out")
    example = run("score", "--help").split("hiar score out --out ")[1].split()[0]
    assert Path(example).parent == Path()
    Path("out/0000.mp4").write_bytes(b"")  # a file of the samples, though altered
    run(*SAMPLE, student, "--out", "out")
    assert len(read_mp4(Path("out/0000.mp4"))) == 6
