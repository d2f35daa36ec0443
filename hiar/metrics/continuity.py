"""Continuity where one block ends and the next begins."""

from __future__ import annotations

import torch
from torch import Tensor

STILL = 0.25  # grey levels added to both changes, so that a still video scores 1 and not 0 / 0


def border_jump(frames: Tensor, block: int) -> Tensor:
    """Change between frames across block borders over that inside blocks: uint8 (V, F, H, W, 3) -> (V,).

    The change of two frames is their mean absolute difference. 1 means that borders cannot be seen; a video of one
    block, or of blocks of one frame, has nothing to compare: 1.
    """
    change = frames.flatten(2).float().diff(dim=1).abs().mean(dim=2).double()
    across = torch.arange(1, frames.shape[1]) % block == 0
    if not across.any() or across.all():
        return torch.ones(frames.shape[0], dtype=torch.float64)
    return (change[:, across].mean(dim=1) + STILL) / (change[:, ~across].mean(dim=1) + STILL)
