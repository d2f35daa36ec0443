"""Manifests, cards and configurations written by others: checked like any input; no file outside is touched."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from hiar.io.artifacts import write_manifest

SAMPLE = ("sample", "--prompt", "a red disc moves left", "--frames", 6, "--out", "out", "--checkpoint", "student")
HASHED = {"sha256": "x", "size": 1}
REMEDY = "run the stage that makes it, or name another folder"
INFINITY = 1e309  # which other programs may write to JSON


def edit(path, **changes):
    path = Path(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def outside(name):
    return (
        {"files": {name: HASHED}},
        f"files: {name!r} is not a file in this folder; {REMEDY}",
    )


MANIFESTS = {
    "block 0": ({"block": 0}, "block = 0: input should be greater than or equal to 1"),
    "block -3": ({"block": -3}, "block = -3: input should be greater than or equal to 1"),
    "block infinite": ({"block": INFINITY}, "block = inf: input should be a"),
    "block 1.5": ({"block": 1.5}, "block = 1.5: input should be a valid integer"),
    "block true": ({"block": True}, "block = True: input should be a valid integer"),
    "block huge": ({"block": "9" * 999}, f"block = '{'9' * 99}...: input should be a valid integer"),
    "world": ({"world": {"kind": "shapes", "size": 64}}, "world.shapes: is missing; give it a value"),
    "world -2": ({"world": {"size": 64}}, "world.kind: is missing; say which kind of world it is"),
    "world -3": ({"world": {"kind": "disc"}}, "world.kind = 'disc': there is no such kind; known: shapes, wan"),
    "world -1": ({"world": "none"}, "world = 'none': input should be a valid dictionary"),
    "NUL": outside("a\0b"),
    "absolute": outside("/etc/passwd"),
    "above": outside("../params.yaml"),
    "above below": outside("x/../../params.yaml"),
    "itself": outside("."),
    "nothing": outside(""),
    "no name": outside("\ud800"),
    "files": ({"files": ["0000.mp4"]}, "files = ['0000.mp4']: input should be a valid dictionary"),
    "size": ({"files": {"0000.mp4": HASHED | {"size": INFINITY}}}, "files.0000.mp4.size = inf: input should be a"),
    "size -1": ({"files": {"0000.mp4": HASHED | {"size": -1}}}, "files.0000.mp4.size = -1: input should be greater"),
    "hash": ({"files": {"0000.mp4": HASHED | {"sha256": 1}}}, "files.0000.mp4.sha256 = 1: input should be a valid str"),
    "kind": ({"kind": 7}, "kind = 7: input should be a valid string"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_an_invalid_manifest_beside_videos_is_refused(case, mistake):
    changes, error = MANIFESTS[case]
    edit("videos/manifest.json", **changes)
    line = mistake("score", "videos", "--out", "score.json")
    assert line.startswith(f"videos/manifest.json: {error}")
    assert line.endswith(REMEDY)


@pytest.mark.parametrize("text", [b"\xff\xfe{}", b"[1]", b"7", b"[" * 100_000, b'{"size": ' + b"9" * 9999 + b"}"])
def test_a_file_that_is_no_manifest_is_refused(text, mistake):
    Path("videos/manifest.json").write_bytes(text)
    assert mistake("score", "videos", "--out", "score.json") == f"videos/manifest.json: is not a manifest; {REMEDY}"
    shutil.copytree("videos", "out")
    line = mistake(*SAMPLE)
    assert line == f"out/manifest.json: is not a manifest; {REMEDY}"


def test_files_unlike_their_manifest_are_refused_without_advice_to_delete_them(mistake):
    """Even if a link or a pipe is in the place of a file of the manifest."""
    before = Path("videos/0001.mp4").read_bytes()
    for put, error in (
        (lambda: Path("videos/0001.mp4").write_bytes(before[:-9]), "size = "),
        (lambda: Path("videos/0001.mp4").write_bytes(before[:-9] + bytes(9)), "does not match its manifest"),
        (lambda: os.symlink("/etc", "videos/0001.mp4"), "is not a file, though its manifest lists it"),
        (lambda: os.mkfifo("videos/0001.mp4"), "is not a file, though its manifest lists it"),
        (lambda: None, "cannot be read (No such file or directory)"),
    ):
        Path("videos/0001.mp4").unlink(missing_ok=True)
        put()
        line = mistake("score", "videos", "--out", "score.json")
        assert line.startswith(f"videos/0001.mp4: {error}")
        assert line.endswith("; run the stage that makes it again, or name another folder")


@pytest.fixture
def spoil_student(student, project):
    """Changes a copy of the student and rewrites its manifest, as an attacker would."""
    shutil.copytree(student, "student")

    def spoil(change):
        change(Path("student"))
        write_manifest(Path("student"), "checkpoint")

    return spoil


def card(**changes):
    return lambda folder: edit(folder / "generator.json", **changes)


def codec(**changes):
    return lambda folder: edit(folder / "codec" / "config.json", **changes)


def transformer(**changes):
    return lambda folder: edit(folder / "transformer" / "config.json", **changes)


def nested(section, **changes):
    def change(folder):
        path = folder / "generator.json"
        edit(path, **{section: json.loads(path.read_text())[section] | changes})

    return change


PARTS = {
    "not UTF-8": (
        lambda f: (f / "generator.json").write_bytes(b"\xff\xfe"),
        "generator.json: is not UTF-8 text; make the checkpoint again",
    ),
    "no JSON": (lambda f: (f / "generator.json").write_text("{"), "generator.json: invalid JSON"),
    "deep": (
        lambda f: (f / "generator.json").write_text("[" * 99_999),
        "generator.json: invalid JSON: recursion",
    ),
    "solver steps": (card(solver_steps=0), "generator.json: solver_steps = 0: input should be greater"),
    "seed": (card(seed=-1), "generator.json: seed = -1: input should be greater"),
    "guidance": (card(guidance=INFINITY), "generator.json: guidance = inf: input should be a finite number"),
    "more": (card(steps=4), "generator.json: steps = 4: unknown parameter; did you mean 'stage'?"),
    "block": (nested("video", block=0), "generator.json: video.block = 0: input should be greater"),
    "clip": (nested("video", frames=16), "generator.json: video.frames = 16: must be a multiple of block = 3"),
    "world": (
        nested("world", size=63),
        "generator.json: world: 63x63 pixels: is not a multiple of the codec's patch",
    ),
    "codec list": (
        lambda f: (f / "codec" / "config.json").write_text("[]"),
        "codec/config.json: is not a codec's configuration (input should be an object",
    ),
    "codec bytes": (
        lambda f: (f / "codec" / "config.json").write_bytes(b"\xff"),
        "codec/config.json: is not a codec's configuration (invalid JSON",
    ),
    "patch": (codec(patch=0), "codec/config.json: is not a codec's configuration (patch = 0: input should be greater"),
    "width": (codec(width="x"), "codec/config.json: is not a codec's configuration (width = 'x': input should be a"),
    "heads": (transformer(num_attention_heads=0), "transformer: cannot be loaded ("),
    "layers": (transformer(num_layers="x"), "transformer: cannot be loaded ("),
    "list": (lambda f: (f / "transformer" / "config.json").write_text("[]"), "transformer: cannot be loaded ("),
    "bytes": (lambda f: (f / "text_encoder" / "config.json").write_bytes(b"\xff"), "text_encoder: cannot be loaded ("),
}


@pytest.mark.parametrize("case", PARTS)
def test_invalid_parts_of_a_checkpoint_are_refused(case, spoil_student, mistake):
    change, error = PARTS[case]
    spoil_student(change)
    line = mistake(*SAMPLE)
    assert line.startswith(f"student/{error}")
    assert "again" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings": ["world.size"]}, "settings = ['world.size']: input should be a valid dictionary"),
        (
            {"settings": {"world.size": INFINITY}, "stage": "codec"},
            "world.size = inf: params.yaml says 64; run stage",
        ),
        ({"stage": 7}, "stage = 7: input should be a valid string"),
    ],
)
def test_an_invalid_manifest_of_a_stages_input_is_refused(changes, said, mistake):
    folder = Path("artifacts/seed-0/teacher")
    folder.mkdir(parents=True)
    write_manifest(folder, "checkpoint")
    edit(folder / "manifest.json", **changes)
    assert mistake("stage", "pairs", "--seed", 0).startswith(f"{folder}/manifest.json: {said}")
