"""Courses of what is measured of single frames, the same in any part or batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Measure = Callable[[Tensor], Tensor]  # of videos uint8 (V, F, H, W, 3): (V, F)


def frame_by_frame(measures: Mapping[str, Measure], frames: Tensor) -> dict[str, Tensor]:
    """Each measure (V, F) of videos uint8 (V, F, H, W, 3), whose frames are looked at one by one.

    So no part or batch shows in the last bits.
    """
    return {
        name: torch.stack([torch.cat([of(frame[None, None])[0] for frame in video]) for video in frames])
        for name, of in measures.items()
    }
