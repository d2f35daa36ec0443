"""The paper's Drift (Sec. 4.1) with the paper's networks, which run in VBench's environment from local files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiar.judges.interface import Findings
from hiar.metrics.drift import saturation, sharpness
from hiar.profiles.courses import frame_by_frame
from hiar.profiles.profile import Profile, made_by
from hiar.profiles.recipe import LEAST_FRAMES, Recipe, drift_metrics
from hiar.vbench.asking import device_of
from hiar.vbench.doctor import examine, require_runnable
from hiar.vbench.environment import default_folder, find_environment
from hiar.vbench.frames import DRIFT, VERSIONS, Networks
from hiar.vbench.weights import weights_folder

NAME = DRIFT
VERSION = 1
FRAME = {"saturation": saturation, "sharpness": sharpness}
METRICS = {
    "musiq": "MUSIQ (pyiqa), trained on SPAQ as VBench's imaging_quality, 0 to 100",
    "clip_iqa": "CLIP-IQA (pyiqa) of CLIP's RN50, five pairs of prompts, 0 to 1",
    "dinov2": "cosine of DINOv2 ViT-B/14's class tokens (transformers) of consecutive frames: shorter side brought to "
    "256 pixels, the middle 224x224",
    "lpips": "LPIPS of AlexNet, version 0.1 (torchmetrics), between consecutive frames",
    "saturation": "mean HSV saturation, 0 to 1",
    "sharpness": "variance of the Laplacian of luma, squared grey levels",
}
RECIPE = Recipe("drift", dict.fromkeys(METRICS, 1 / 6))
LEAST_SIDE = 64  # pixels: the convolutions of AlexNet and of CLIP's ResNet leave nothing of smaller frames


class Drift:
    """See `hiar.judges.interface.Observer`. Frames are measured one by one: parts and batches do not change results."""

    least_frames = LEAST_FRAMES

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def look(self, frames: Tensor, before: Tensor | None, prompts: Sequence[str]) -> Findings:
        joined = frames if before is None else torch.cat([before, frames], dim=1)
        said = [self._networks.look(video.numpy().tobytes(), video.shape, before is not None) for video in joined]
        courses = {name: torch.tensor([one[name] for one in said], dtype=torch.float64) for name in said[0]}
        return frame_by_frame(FRAME, frames) | courses

    def measure(self, findings: Findings) -> dict[str, Tensor]:
        return drift_metrics(RECIPE, findings)


def open_profile() -> Profile:
    """The profile, whose record says what its metrics are and which files they come from.

    Raises UserError where VBench's environment, a package in it or a file is missing, or a file is another one.
    """
    environment, weights = find_environment(default_folder()), weights_folder()
    [finding] = examine(environment, weights, [NAME])
    require_runnable([finding])
    device = device_of(environment)
    models = [{"file": file, "sha256": digest} for file, digest in finding.weights.items()]
    record = (
        {"metrics": METRICS}
        | RECIPE.record()
        | made_by(NAME, VERSION)
        | {"models": models, "device": device, "environment": environment.versions(VERSIONS)}
    )
    return Profile(
        NAME, Drift(Networks(environment, weights, device, torch.get_num_threads())), record, least_side=LEAST_SIDE
    )
