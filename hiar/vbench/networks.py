"""Runs inside VBench's environment: values of frames by the networks of the paper's Drift, one frame after another.

The first line on the standard input, JSON, has the settings. Then come parts of videos, each a line of JSON (``shape``
(F, H, W, 3), and whether its first frame only precedes the part, ``before``) followed by its pixels; each is answered
by a line of JSON on the original standard output. The end of the input ends the process. This file imports nothing of
the project but files beside it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable
from typing import Any

RESIZED, CROPPED = 256, 224  # pixels: the shorter side, then a centre crop, as published for DINOv2

Look = Callable[[Any, bool], dict[str, list[float]]]


def main() -> None:
    """Answer ``ready`` once the networks are loaded, then the values of each part by metric."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # the packages print a lot
    confined = _beside("worker.py")
    parts = sys.stdin.buffer
    request = json.loads(parts.readline())
    os.environ |= {"TORCH_HOME": request["home"], "HF_HUB_OFFLINE": "1"}
    sys.addaudithook(confined["stay_offline"])
    confined["mend_torchvision"]()
    import torch

    torch.set_num_threads(request["threads"])
    look = open_networks(request["weights"], torch.device(request["device"]))
    answers.write(json.dumps({"event": "ready"}) + "\n")
    while line := parts.readline():
        part = json.loads(line)
        frames, height, width, _ = part["shape"]
        pixels = bytearray(parts.read(frames * height * width * 3))
        video = torch.frombuffer(pixels, dtype=torch.uint8).view(part["shape"])
        answers.write(json.dumps({"event": "part", "values": look(video, part["before"])}) + "\n")


def open_networks(weights: str, device: Any) -> Look:
    """A function of frames uint8 (F, H, W, 3), the first of which may only precede the part.

    It returns ``musiq`` and ``clip_iqa`` per frame, ``dinov2`` (cosine of embeddings) and ``lpips`` (distance) per pair
    of consecutive ones. Frames are computed one by one, so that values do not depend on parts or batches.
    """
    import pyiqa
    import torch
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    def place(name: str) -> str:
        return os.path.join(weights, name)

    musiq = pyiqa.create_metric(
        "musiq", device=device, pretrained_model_path=place("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth")
    )
    clip_iqa = pyiqa.create_metric("clipiqa", device=device, backbone=place("clip_model/RN50.pt"))
    lpips = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device)
    class_token = _beside("first_frames.py")["load_dinov2"](weights, device)

    def embed(frame: Any) -> Any:
        """The class token (768,) of a frame (1, 3, H, W) in [0, 1]."""
        height, width = frame.shape[2:]
        size = height * RESIZED // min(height, width), width * RESIZED // min(height, width)
        resized = torch.nn.functional.interpolate(frame, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - CROPPED) // 2, (size[1] - CROPPED) // 2
        return class_token(resized[:, :, top : top + CROPPED, left : left + CROPPED])[0]

    @torch.no_grad()
    def look(video: Any, before: bool) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {"musiq": [], "clip_iqa": [], "dinov2": [], "lpips": []}
        earlier = None
        for number, pixels in enumerate(video):
            frame = (pixels.to(device).permute(2, 0, 1)[None] / 255).contiguous()
            if number or not before:
                values["musiq"].append(float(musiq(frame)))
                values["clip_iqa"].append(float(clip_iqa(frame)))
            later = frame, embed(frame)
            if earlier is not None:
                values["dinov2"].append(float(torch.nn.functional.cosine_similarity(earlier[1], later[1], dim=0)))
                values["lpips"].append(float(lpips(earlier[0], later[0])))
            earlier = later
        return values

    return look


def _beside(name: str) -> dict[str, Any]:
    """The definitions in a file of this folder, which is in no package of the environment."""
    return runpy.run_path(os.path.join(os.path.dirname(os.path.abspath(__file__)), name))


if __name__ == "__main__":
    main()
