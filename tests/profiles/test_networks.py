"""Drift's networks, in the published architectures with random weights, against direct calls of their libraries.

Needs `make vbench`, a gigabyte of disk and some minutes.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from hiar.errors import RunFailed
from hiar.profiles.drift import open_profile
from hiar.vbench.asking import WORKER
from hiar.vbench.environment import default_folder, find_environment
from hiar.vbench.frames import FILES
from hiar.vbench.weights import approve

CALLED = Path(__file__).with_name("networks_called.py")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (default_folder() / ".ready").exists(), reason=f"{default_folder().name} is not built: make vbench"
    ),
]


def libraries(*arguments):
    command = [find_environment(default_folder()).python, "-I", CALLED, WORKER, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "weights"
    libraries("make", folder)
    for name in FILES:
        approve(folder, name)
    return folder


@pytest.fixture
def installed_weights(weights, monkeypatch):
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(weights))
    return weights


def frames_of(height, width):
    """Seven frames of a pattern that moves and fades, with noise."""
    noise = torch.Generator().manual_seed(3)
    coarse = torch.rand(1, 3, 6, 8, generator=noise)
    picture = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    moved = torch.stack([picture.roll(5 * number, 1) * (1 - 0.1 * number) for number in range(7)])
    return ((moved + 0.03 * torch.randn(moved.shape, generator=noise)).clamp(0, 1) * 255).byte()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 171), (240, 416)])
def test_values_are_those_of_the_libraries(installed_weights, tmp_path, height, width):
    torch.set_num_threads(1)
    frames = frames_of(height, width)
    np.save(tmp_path / "frames.npy", frames.numpy())
    expected = json.loads(libraries("call", installed_weights, tmp_path / "frames.npy").splitlines()[-1])
    found = open_profile().observer.look(frames[None], None, [""])
    for name in ("musiq", "clip_iqa"):
        assert found[name][0].tolist() == expected[name], name
    for name in ("dinov2", "lpips"):  # the libraries sum, and scale to 224 pixels, in another order
        assert found[name][0].tolist() == pytest.approx(expected[name], rel=1e-6), name
    assert len(set(expected["musiq"])) == 7


def test_weights_of_another_model_are_not_filled_up_at_random(installed_weights):
    from safetensors.torch import load_file, save_file

    path = installed_weights / "dinov2-base" / "model.safetensors"
    whole = path.read_bytes()
    lacking = load_file(path)
    lacking.pop("encoder.layer.3.mlp.fc1.weight")
    save_file(lacking, path, metadata={"format": "pt"})
    approve(installed_weights, "dinov2-base/model.safetensors")
    try:
        with pytest.raises(RunFailed, match=r"belongs to another model.*encoder\.layer\.3\.mlp\.fc1\.weight"):
            open_profile().observer.look(frames_of(64, 64)[None], None, [""])
    finally:
        path.write_bytes(whole)
        approve(installed_weights, "dinov2-base/model.safetensors")
