"""Measures of single frames over time, the same for any division of videos into parts or batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Measure = Callable[[Tensor], Tensor]  # of videos uint8 (V, F, H, W, 3): (V, F)


def frame_by_frame(measures: Mapping[str, Measure], frames: Tensor) -> dict[str, Tensor]:
    """Each measure (V, F) of videos uint8 (V, F, H, W, 3), computed on one frame at a time.

    So parts and batches do not change the last bits.
    """
    return {
        name: torch.stack([torch.cat([of(frame[None, None])[0] for frame in video]) for video in frames])
        for name, of in measures.items()
    }
