"""Which samples an experiment compares, and how their folders are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hiar.config import Context, Order, Params
from hiar.errors import UserError
from hiar.io.video import read_mp4
from hiar.stages.common import Paths

SAMPLES = "samples"  # kind of their manifests
CAPTIONS = "captions.txt"
TEACHER = "teacher"


@dataclass(frozen=True)
class Contender:
    """One model of the comparison under one seed; the teacher walks no grid."""

    stage: Literal["teacher", "init", "distill"]
    variant: str
    order: Order | None
    context: Context | None
    seed: int

    def samples(self, workspace: Path) -> Path:
        """The folder of its samples."""
        return Paths(workspace, self.seed).samples(self.stage, None if self.stage == TEACHER else self.variant)


def contenders(params: Params) -> Iterator[Contender]:
    """Everything that ``params.compare`` and ``params.seeds`` name: seed by seed, the teacher first."""
    for seed in params.seeds:
        yield Contender("teacher", TEACHER, None, None, seed)
        for name in params.compare.init:
            walk = params.variant(name)
            yield Contender("init", name, walk.order, walk.context, seed)
        for name in params.compare.distill:
            walk = params.variant(name)
            yield Contender("distill", name, walk.order, walk.context, seed)


def read_captions(folder: Path) -> list[str]:
    """The captions of a folder of videos, one a line. Raises UserError when there are none or they are not UTF-8."""
    path = folder / CAPTIONS
    try:
        captions = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); write one caption a line, one line a video"
        ) from None
    if not captions or not all(caption.strip() for caption in captions):
        raise UserError(f"{path}: holds an empty line or nothing; write one caption a line, one line a video")
    return captions


def read_videos(folder: Path, count: int) -> Tensor:
    """The ``count`` mp4 videos of a folder in the order of their names, uint8 (V, F, H, W, 3).

    Raises UserError when there are not as many as captions, or they cannot be read or differ in size.
    """
    paths = sorted(folder.glob("*.mp4"))
    if len(paths) != count:
        raise UserError(f"{folder / CAPTIONS}: holds {count} captions for {len(paths)} videos; write one line a video")
    videos = [read_mp4(path) for path in paths]
    for path, video in zip(paths, videos, strict=True):
        if video.shape != videos[0].shape:
            raise UserError(f"{path}: is {_geometry(video)}, {paths[0].name} {_geometry(videos[0])}; make them alike")
    return torch.stack(videos)


def _geometry(video: Tensor) -> str:
    frames, height, width, _ = video.shape
    return f"{frames} frames of {width}x{height}"
