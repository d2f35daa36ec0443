"""Drift in the paper's form from metrics without weights: a stand-in under its own name, never the paper's Drift."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiar.judges.interface import Findings
from hiar.metrics.drift import colorfulness, saturation, sharpness
from hiar.profiles.courses import Measure, frame_by_frame
from hiar.profiles.profile import Profile, made_by
from hiar.profiles.recipe import LEAST_FRAMES, Recipe, drift_metrics

NAME = "drift-lite"
VERSION = 1
FRAME: dict[str, Measure] = {
    "saturation": saturation,
    "sharpness": sharpness,
    "colorfulness": colorfulness,
}
PAIR = ("ssim", "warp_error", "flow")
RECIPE = Recipe("drift_lite", dict.fromkeys((*FRAME, *PAIR), 1 / 6))


class DriftLite:
    """See `hiar.judges.interface.Observer`. Frames are measured one by one: parts and batches do not change results."""

    least_frames = LEAST_FRAMES

    def look(self, frames: Tensor, before: Tensor | None, prompts: Sequence[str]) -> Findings:
        joined = frames if before is None else torch.cat([before, frames], dim=1)
        between = torch.stack([_pairs(video) for video in joined])
        return frame_by_frame(FRAME, frames) | dict(zip(PAIR, between.unbind(dim=-1), strict=True))

    def measure(self, findings: Findings) -> dict[str, Tensor]:
        return drift_metrics(RECIPE, findings)


def open_profile() -> Profile:
    """The profile, whose record says what its metrics are."""
    import cv2

    from hiar.profiles import pairs

    cv2.setNumThreads(torch.get_num_threads())
    metrics = {
        "saturation": "mean HSV saturation, 0 to 1",
        "sharpness": "variance of the Laplacian of luma, squared grey levels",
        "colorfulness": "Hasler and Suesstrunk (2003), grey levels",
        "ssim": f"SSIM of consecutive frames, shorter side about {pairs.SSIM_SIDE} pixels at most",
        "warp_error": "mean absolute error, of 1, of a frame brought back along DIS optical flow (medium), shorter "
        f"side about {pairs.FLOW_SIDE} pixels at most",
        "flow": "mean length of that flow, percent of the shorter side a frame",
    }
    record = {"metrics": metrics} | RECIPE.record() | made_by(NAME, VERSION, "opencv-python-headless")
    return Profile(NAME, DriftLite(), record, least_side=pairs.LEAST_SIDE)


def _pairs(frames: Tensor) -> Tensor:
    """The metrics of PAIR between the F consecutive frames (F, H, W, 3) of a video: (F - 1, PAIR)."""
    from hiar.profiles import pairs

    found, earlier = [], None
    for frame in frames.numpy():
        grey = pairs.grey_of(frame)
        later = pairs.reduced(grey, pairs.SSIM_SIDE), pairs.reduced(grey, pairs.FLOW_SIDE)
        if earlier is not None:
            flow = pairs.flow_between(earlier[1], later[1])
            similarity, error = pairs.ssim(earlier[0], later[0]), pairs.warp_error(earlier[1], later[1], flow)
            found.append([similarity, error, pairs.magnitude(flow)])
        earlier = later
    return torch.tensor(found, dtype=torch.float64).view(-1, len(PAIR))
