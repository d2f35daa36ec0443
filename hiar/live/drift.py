"""Drift of a video while it plays: pixel statistics, and the world's judge on the last seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hiar.judges.interface import Findings, Judge, open_judge
from hiar.metrics import drift
from hiar.models.generator import Generator
from hiar.parameters import load_params

SHOWN = 2  # how many of the judge's columns are shown: the first ones
SECONDS = 2.0  # of video that the judge measures


def open_figures(source: Generator, params: Path) -> Callable[[str, Tensor], dict[str, float]]:
    """A function that returns the figures of each next block, from its prompt and pictures, uint8 (F, H, W, 3).

    Saturation in [0, 1] and sharpness in squared grey levels are those of the block's last picture; the world's judge
    measures the last `SECONDS`. Its thresholds come from ``params``, as in `hiar score`; without that file there is
    no judge.
    """
    judge: Judge | None = None
    if params.is_file():
        judge = open_judge(source.card.world, load_params(params).score, *source.block_pictures)
    looked: deque[Findings] = deque()
    most = 0 if judge is None else max(judge.least_frames, round(SECONDS * source.world.frames_per_second))

    def figures(prompt: str, pictures: Tensor) -> dict[str, float]:
        last = pictures[None, -1:]
        told = {"saturation": float(drift.saturation(last)), "sharpness": float(drift.sharpness(last))}
        if judge is None:
            return told
        # Blocks are examined one by one: no figure shown here measures changes from picture to picture.
        looked.append(judge.look(pictures[None], None, [prompt]))
        while len(looked) > 1 and sum(_frames(part) for part in looked) - _frames(looked[0]) >= most:
            looked.popleft()
        if sum(_frames(part) for part in looked) < judge.least_frames:
            return told
        joined = {name: torch.cat([part[name] for part in looked], dim=1) for name in looked[0]}
        measured = judge.measure(joined)
        return told | {name: float(measured[name]) for name in judge.columns[:SHOWN]}

    return figures


def _frames(part: Findings) -> int:
    return part["saturation"].shape[1]
