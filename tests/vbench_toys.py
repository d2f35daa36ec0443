"""A toy environment of VBench, with a toy suite and toy weights of the right formats."""

from __future__ import annotations

import gzip
import json
import shutil
import venv
import zipfile
from pathlib import Path
from typing import Any

import torch

from hiar.io.video import write_mp4
from hiar.vbench.dimensions import DIMENSIONS
from hiar.vbench.weights import WEIGHTS, approve

STYLE = {"appearance_style": {"appearance_style": "oil painting"}}
SUITE = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a bench", "dimension": ["temporal_flickering", "imaging_quality"]},
    {"prompt_en": "the bund, oil painting", "dimension": ["appearance_style"], "auxiliary_info": STYLE},
    {"prompt_en": "A person is riding a bike", "dimension": ["human_action"]},
    {"prompt_en": "the bund, oil painting", "dimension": ["overall_consistency", "imaging_quality"]},
]
MODULE = """from vbench.toy import scored
from functools import partial

tqdm = iter


def compute_{name}(path, device, submodules, **_):
    return scored("{name}", path, progress=tqdm)
"""


def build_environment(folder: Path) -> Path:
    """A virtual environment whose `vbench` is tests/vbench/toy.py."""
    venv.EnvBuilder(with_pip=False).create(folder)
    packages = next(folder.glob("lib/python3*/site-packages"))
    (packages / "vbench").mkdir()
    shutil.copy(Path(__file__).with_name("vbench") / "toy.py", packages / "vbench" / "toy.py")
    (packages / "vbench" / "utils.py").write_text(
        "def init_submodules(names, local):\n    assert local\n    return {name: [] for name in names}\n"
    )
    for name in DIMENSIONS:
        (packages / "vbench" / f"{name}.py").write_text(MODULE.format(name=name))
    (packages / "vbench" / "VBench_full_info.json").write_text(json.dumps(SUITE))
    # what the worker asks of torch before it comes to VBench
    (packages / "torch.py").write_text("class version:\n    cuda = 'none'\n\n\ndef device(name):\n    return name\n")
    return folder


def lay_weights(folder: Path, *dimensions: str) -> Path:
    """Files of the right formats with nothing in them, approved, for these dimensions or for all."""
    for name in WEIGHTS:
        if not dimensions or any(name in DIMENSIONS[dimension].files for dimension in dimensions):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".pth":
                torch.save({}, path)
            elif path.suffix == ".pt":
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("archive/constants.pkl", b"")
            elif path.suffix == ".gz":
                path.write_bytes(gzip.compress(b""))
            else:
                path.write_text("\n")
            approve(folder, name)
    return folder


def behave(weights: Path, **orders: str) -> None:
    """What the toy's dimensions do from now on; nothing special by default."""
    (weights / "behave.json").write_text(json.dumps(orders))


def asked(weights: Path) -> list[dict[str, Any]]:
    """Every video that the toy was asked for since the last call."""
    path = weights / "asked.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    path.write_text("")
    return [json.loads(line) for line in lines]


def film(path: Path, frames: int, seed: int, fps: int = 4) -> Path:
    """A video of noise, 32 x 48, in the file 192 x 288."""
    noise = torch.Generator().manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, torch.randint(0, 256, (frames, 32, 48, 3), generator=noise, dtype=torch.uint8), fps)
    return path
