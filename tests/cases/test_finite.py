"""Numbers that are not finite are never loaded, kept or shown, and videos that show nothing score zero."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from commands import copy_artifacts
from safetensors.torch import load_file, save_file

from hiar.errors import UserError
from hiar.io.artifacts import write_manifest
from hiar.io.video import write_mp4
from hiar.parameters import load_params
from hiar.stages import codec, init, pairs

PROMPT = ("--prompt", "a red disc moves left", "--checkpoint", "student")
TRANSFORMER, TEXT = (f"student/{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "text_encoder"))
CODEC = "student/codec/codec.safetensors"


@pytest.fixture
def spoil(student, project):
    """Changes a tensor in a copy of the student, and rewrites its manifest."""
    shutil.copytree(student, "student")

    def spoil(path, name, change):
        tensors = load_file(path)
        tensors[name] = change(tensors[name])
        save_file(tensors, path, {"format": "pt"})
        write_manifest(Path("student"), "checkpoint")

    return spoil


def first_set_to(value):
    """Returns a function that sets the first element of a tensor to ``value``."""

    def change(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return change


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("path", "name", "named"),
    [
        (TRANSFORMER, "blocks.1.ffn.net.2.bias", "student/transformer"),
        (TEXT, "mix.weight", "student/text_encoder"),
        (CODEC, "scale", CODEC),
    ],
)
def test_a_checkpoint_with_weights_that_are_not_finite_is_refused(path, name, named, value, spoil, mistake):
    spoil(path, name, first_set_to(value))
    for command in (("sample", "--frames", 6, "--out", "out"), ("stream", "--out", "v.mp4")):
        line = mistake(*command, *PROMPT)
        assert line.startswith(f"{named}: {name}: 1 of ")
        assert "not finite" in line
    assert not list(Path().glob("out*"))


OVERFLOWS = {
    "latents": (TRANSFORMER, "proj_out.weight", lambda weight: torch.full_like(weight, 3e38)),
    "pixels": (CODEC, "basis", lambda basis: torch.full_like(basis, 3e38)),
}


@pytest.mark.parametrize(("what", "processes"), [("latents", ()), ("pixels", ()), ("latents", ("--processes", 2))])
def test_videos_that_overflow_are_not_written(what, processes, spoil, mistake):
    spoil(*OVERFLOWS[what])
    line = mistake("sample", "--frames", 12, "--out", "out", *processes, *PROMPT)
    assert line.startswith(f"video 0000: its {what} are not finite from frame 0 on, so it is not written; ")
    # with several processes, an unfinished video holds finished frames only: none
    assert [path.name for path in Path().rglob("*.mp4") if "videos" not in path.parts] == []


@pytest.mark.parametrize("what", OVERFLOWS)
def test_streams_that_overflow_are_not_written(what, spoil, mistake):
    spoil(*OVERFLOWS[what])
    Path("v.mp4").write_text("of before")
    line = mistake("stream", "--frames", 12, "--out", "v.mp4", *PROMPT)
    assert line.startswith(f"video 0000: its {what} are not finite from frame 0 on")


@pytest.fixture
def copy_smoke(smoke, project):
    """Copies the smoke experiment's trained artifacts to the project; returns its parameters."""

    def copy_smoke():
        for name in ("codec", "teacher", "pairs", "init"):
            copy_artifacts(smoke / "artifacts" / "seed-0" / name, project / "artifacts" / "seed-0" / name)
        return load_params(smoke / "params.yaml")

    return copy_smoke


def test_pairs_that_are_not_finite_are_not_kept(copy_smoke):
    params = copy_smoke()
    spec = params.pairs.model_copy(update={"guidance": 1e30})  # more than params.yaml accepts
    with pytest.raises(UserError, match=r"trajectory 0: its state after 1 steps is not finite; lower pairs\.guidance"):
        pairs.run(params.model_copy(update={"pairs": spec}), Path(), 0)
    assert not list(Path().rglob("pairs.partial/*.safetensors"))


@pytest.mark.parametrize(("stage", "tensor"), [("codec", "enter.weight"), ("init", "scale_shift_table")])
def test_a_last_update_that_overflows_leaves_no_artifact(stage, tensor, copy_smoke):
    params = copy_smoke()
    section = getattr(params, stage)
    optimizer = section.training.optimizer
    adamw = optimizer.adamw.model_copy(update={"weight_decay": 1e300})  # more than params.yaml accepts
    training = section.training.model_copy(
        update={"steps": 1, "optimizer": optimizer.model_copy(update={"adamw": adamw})}
    )
    spoiled = params.model_copy(update={stage: section.model_copy(update={"training": training})})
    line = f": {tensor}: .* not finite, as after training that overflowed; train again with a lower learning"
    before = (Path("artifacts") / "seed-0" / stage / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=line):
        {"codec": codec, "init": init}[stage].run(spoiled, Path(), 0)
    assert (Path("artifacts") / "seed-0" / stage / "manifest.json").read_bytes() == before


def test_black_videos_score_zero(run):
    for number in range(3):
        write_mp4(Path(f"videos/{number:04d}.mp4"), torch.zeros(10, 64, 64, 3, dtype=torch.uint8), 12)
    Path("videos/manifest.json").unlink()
    metrics = json.loads(run("score", "videos", "--out", "-"))["oracle"]["metrics"]
    assert [metrics[name]["mean"] for name in ("visible", "good", "hops", "saturation_drift")] == [0, 0, 0, 0]


def test_videos_of_the_world_are_visible(run):
    metrics = json.loads(run("score", "videos", "--out", "-"))["oracle"]["metrics"]
    assert metrics["visible"]["mean"] == 1
