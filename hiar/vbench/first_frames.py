"""Runs inside VBench's environment: the similarity of the pictures of a video, for VBench-Long's fast branch.

VBench-Long's package has the same, but cannot be imported: it needs torchvision's video writer, now removed.
This file imports nothing of the project.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, as in DINOv2's training
RESIZED, CROPPED = 256, 224  # pixels: the shorter side, then a centre crop, as VBench-Long does for DINOv2
DREAMSIM = 224  # pixels a side, whatever the aspect ratio

Embed = Callable[[Any], Any]  # a picture uint8 (1, 3, H, W) to its embedding (1, D)


def open_branch(
    dimension: str, device: str, weights: str, home: str, step: Callable[[], None]
) -> Callable[[Any], list[dict[str, Any]]]:
    """A function of entries whose videos consist of first frames, which returns one record per video."""
    import torch

    opened = {"subject_consistency": open_dinov2, "background_consistency": open_dreamsim}[dimension]
    embed = opened(device, weights, home)

    @torch.no_grad()
    def score(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        records = []
        for path in (path for entry in entries for path in entry["video_list"]):
            step()
            embeddings = (embed(picture.to(device)) for picture in _read(path))
            records.append({"video_path": path, "video_results": likeness(embeddings)})
        return records

    return score


def likeness(embeddings: Iterator[Any]) -> float:
    """The mean, over all pictures but the first, of the similarity to the one before and to the first.

    Both are cosines of embeddings (1, D), clipped below at 0.
    """
    import torch

    first = before = next(embeddings)
    found = []
    for now in embeddings:
        cosines = [float(torch.nn.functional.cosine_similarity(one, now)) for one in (before, first)]
        found.append(sum(max(0.0, cosine) for cosine in cosines) / 2)
        before = now
    return sum(found) / len(found)


def _read(path: str) -> Iterator[Any]:
    """The pictures of a video, as VBench reads them: uint8 (1, 3, H, W)."""
    import torch
    from decord import VideoReader

    for frame in VideoReader(path, num_threads=1):
        yield torch.from_numpy(frame.asnumpy()).permute(2, 0, 1)[None]


def _resized(picture: Any, height: int, width: int) -> Any:
    """Resize bicubically, with 255 scaled to 1; in floats, as VBench reads pictures: nothing is rounded or clipped."""
    import torch

    return torch.nn.functional.interpolate(picture.float(), (height, width), mode="bicubic", antialias=True) / 255


def load_dinov2(weights: str, device: Any) -> Callable[[Any], Any]:
    """DINOv2 ViT-B/14: squares (B, 3, 224, 224) of pictures in [0, 1] to its class token (B, 768)."""
    import torch
    from transformers import Dinov2Model

    place = os.path.join(weights, "dinov2-base")
    loaded: Any = Dinov2Model.from_pretrained(place, local_files_only=True, output_loading_info=True)
    model, strange = loaded[0].eval().to(device), {name: keys for name, keys in loaded[1].items() if keys}
    if strange:  # what is missing would be drawn at random
        raise SystemExit(f"dinov2-base/model.safetensors belongs to another model: {strange}")
    mean, spread = (torch.tensor(one, device=device).view(3, 1, 1) for one in (MEAN, SPREAD))
    return lambda square: model((square - mean) / spread).last_hidden_state[:, 0]


def open_dinov2(device: str, weights: str, home: str) -> Embed:
    """DINOv2's class token, of pictures resized as by VBench-Long."""
    class_token = load_dinov2(weights, device)

    def embed(picture: Any) -> Any:
        height, width = picture.shape[2:]
        short = min(height, width)
        resized = _resized(picture, height * RESIZED // short, width * RESIZED // short)
        top, left = (round((side - CROPPED) / 2) for side in resized.shape[2:])
        return class_token(resized[:, :, top : top + CROPPED, left : left + CROPPED])

    return embed


def open_dreamsim(device: str, weights: str, home: str) -> Embed:
    """DreamSim's embedding: DINO's, CLIP's and OpenCLIP's ViT-B/16, tuned together to human similarity judgements."""
    from dreamsim import dreamsim

    folder = os.path.join(home, "dreamsim")  # where DreamSim keeps its files and, as torch.hub's folder, DINO's
    os.makedirs(os.path.join(folder, "checkpoints"))
    links = {name: f"dreamsim/{name}" for name in os.listdir(os.path.join(weights, "dreamsim"))}
    links |= {
        "facebookresearch_dino_main": "dino_model/facebookresearch_dino_main",
        "checkpoints/dino_vitbase16_pretrain.pth": "dino_model/dino_vitbase16_pretrain.pth",
    }
    for name, target in links.items():
        os.symlink(os.path.join(weights, target), os.path.join(folder, name))
    with open(os.path.join(folder, "ensemble_lora", "adapter_config.json"), encoding="utf-8") as file:
        json.load(file)  # a broken file fails here, as a JSON error
    model, _ = dreamsim(pretrained=True, device=device, cache_dir=folder)
    return lambda picture: model.embed(_resized(picture, DREAMSIM, DREAMSIM))
