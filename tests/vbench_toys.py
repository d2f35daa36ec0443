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
from hiar.vbench.doctor import NEEDS
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
    return scored("{name}", path, device, progress=tqdm)
"""

TORCH = """class version:
    cuda = "none"


def device(name):
    return name


def no_grad():
    return lambda compute: compute


def load(path):
    raise NotImplementedError
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
    # one frame per thousand bytes
    (packages / "decord.py").write_text(
        "import os\n\n\nclass VideoReader:\n    def __init__(self, path, num_threads):\n        self.path = path\n\n"
        "    def __len__(self):\n        return os.path.getsize(self.path) // 1000\n"
    )
    # what the worker calls in torch before it imports VBench
    (packages / "torch.py").write_text(TORCH)
    return folder


# Stand-ins for the packages of Drift's networks: the value of each for a frame follows from the frame's colours.
# A file `behave` among the weights makes one misbehave.
NETWORKS = {
    "pyiqa": """
import pathlib
import socket


def create_metric(name, device, **files):
    [path] = map(pathlib.Path, files.values())
    behave = path.parents[1] / "behave"
    if behave.exists() and behave.read_text() == "connect":
        socket.create_connection(("127.0.0.1", 9), timeout=5)
    kind = {"musiq": "musiq_spaq_ckpt-358bb6af.pth", "clipiqa": "RN50.pt"}[name]
    assert path.name == kind and path.is_file()
    if name == "clipiqa":
        return lambda frame: frame[:, 1].mean()
    coloured = lambda frame: frame[:, 0].any() or (frame[:, 1] != frame[:, 2]).any()
    return lambda frame: 100 * frame[:, 0].mean() if coloured(frame) else frame.mean() / 0
""",
    "transformers": """
import pathlib
from types import SimpleNamespace

import torch


class Dinov2Model(torch.nn.Module):
    @classmethod
    def from_pretrained(cls, place, local_files_only, output_loading_info):
        assert local_files_only and output_loading_info
        behave = pathlib.Path(place).with_name("behave")
        missing = ["encoder.layer.0"] if behave.exists() and behave.read_text() == "lack" else []
        return cls(), {"missing_keys": missing, "unexpected_keys": []}

    def forward(self, square):
        assert square.shape == (1, 3, 224, 224)
        angle = square[0, 2].mean() * 0.225 + 0.406
        return SimpleNamespace(last_hidden_state=torch.stack([angle.cos(), angle.sin()])[None, None])
""",
    "torchmetrics": "",
    "torchmetrics/image": "",
    "torchmetrics/image/lpip": """
import os

import torch


class LearnedPerceptualImagePatchSimilarity(torch.nn.Module):
    def __init__(self, net_type, normalize):
        super().__init__()
        assert (net_type, normalize) == ("alex", True)
        assert os.path.isfile(os.environ["TORCH_HOME"] + "/hub/checkpoints/alexnet-owt-7be5be79.pth")

    def forward(self, one, other):
        return (one - other).abs().mean()
""",
    "torchvision": "",
    "vbench/cli": "",
    "vbench/cli/static_filter": """
import pathlib

import torch
from vbench.toy import looked_at

DEVICE = "cuda"


class RAFT(torch.nn.Module):
    def __init__(self, options):
        super().__init__()
        assert (options.small, options.mixed_precision, options.alternate_corr) == (False, False, False)


class StaticFilter:
    def __init__(self, args, device):
        self.args, self.device = args, device
        self.load_model()

    def infer(self, path):
        assert DEVICE == self.device == "cpu"
        assert isinstance(self.model, RAFT)
        return looked_at(path)
""",
    "peft": "",
    "dreamsim": """
import pathlib
from types import SimpleNamespace

import torch


def dreamsim(pretrained, device, cache_dir):
    here = pathlib.Path(cache_dir)
    there = ["dino_vitb16_pretrain.pth", "clip_vitb16_pretrain.pth.tar", "open_clip_vitb16_pretrain.pth.tar"]
    there += ["ensemble_lora/adapter_model.safetensors", "facebookresearch_dino_main/hubconf.py"]
    assert pretrained and all((here / name).is_file() for name in [*there, "checkpoints/dino_vitbase16_pretrain.pth"])

    def embed(picture):
        assert picture.shape == (1, 3, 224, 224)
        angle = picture[0, 2].mean()
        return torch.stack([angle.cos(), angle.sin()])[None]

    return SimpleNamespace(embed=embed), None
""",
}
DECORD = """
import av


class VideoReader(list):
    def __init__(self, path, num_threads):
        with av.open(path) as source:
            super().__init__(map(Frame, source.decode(video=0)))


class Frame:
    def __init__(self, frame):
        self.frame = frame

    def asnumpy(self):
        return self.frame.to_ndarray(format="rgb24")
"""


def build_networks(folder: Path) -> Path:
    """`build_environment` with our own torch, and toys of the packages of networks that are not VBench's."""
    build_environment(folder)
    packages = next(folder.glob("lib/python3*/site-packages"))
    (packages / "torch.py").unlink()
    (packages / "decord.py").write_text(DECORD)
    (packages / "ours.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    for name, content in NETWORKS.items():
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text(content)
    for name, version in (("pyiqa", "0.1"), ("torchmetrics", "1.9"), ("wheel", "1")):
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def lay_weights(folder: Path, *dimensions: str) -> Path:
    """Write empty files of the right formats and approve them, for these dimensions (or drift) or for all."""
    for name in WEIGHTS:
        if not dimensions or any(name in NEEDS[dimension].files for dimension in dimensions):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name.endswith((".pth", ".pth.tar")):
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
    """Set how the toy's dimensions behave from now on; without ``orders``, as usual."""
    (weights / "behave.json").write_text(json.dumps(orders))


def requests_of(weights: Path) -> list[dict[str, Any]]:
    """All requests that the toy received since the last call, one per video."""
    path = weights / "asked.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    path.write_text("")
    return [json.loads(line) for line in lines]


def film(path: Path, frames: int, seed: int, fps: int = 4) -> Path:
    """Write a video of 32 x 48 pixels of noise; in the file it is 192 x 288."""
    noise = torch.Generator().manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, torch.randint(0, 256, (frames, 32, 48, 3), generator=noise, dtype=torch.uint8), fps)
    return path
