"""A request for videos of a checkpoint, from the command line: which videos, and how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hiar.config import Context, ContextLevel, Order
from hiar.io.outputs import CRF


@dataclass(frozen=True)
class Request:
    """One video per prompt.

    frames: latent frames of each, given ones included; None: endless. order, context, level: None as trained. fp8:
    linear layers in fp8. clip, image: what every video begins with, see `hiar.stages.clips`; resize: pictures of
    another size are scaled and cropped instead of refused. captions: of the videos in the folder, None for the prompts:
    people extend prompts for a generator, and score by the short ones. size: height and width in pixels, None for the
    checkpoint's. crf: h264 quality of the videos. offload: networks take turns on the GPU.
    """

    checkpoint: Path
    prompts: Sequence[str]
    frames: int | None
    seed: int = 0
    order: Order | None = None
    context: Context | None = None
    fp8: bool = False
    clip: Path | None = None
    image: Path | None = None
    resize: bool = False
    captions: Sequence[str] | None = None
    size: tuple[int, int] | None = None
    crf: int = CRF
    level: ContextLevel | None = None
    offload: bool = False

    @property
    def names(self) -> Sequence[str]:
        """The captions of the videos."""
        return self.prompts if self.captions is None else self.captions
