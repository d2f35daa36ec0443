"""Continuity where one block ends and the next begins."""

from __future__ import annotations

import torch
from torch import Tensor

STILL = 0.25  # grey levels added to both changes, so that a still video scores 1 and not 0 / 0


def border_jump(change: Tensor, block: int, first_block: int | None = None) -> Tensor:
    """Ratio of the change between frames across block borders to that inside blocks: (V, F - 1) -> (V,).

    block: frames of a block; first_block: of the first one, if different.

    1 means that borders cannot be seen; a video of one block, or of blocks of one frame, has nothing to compare: 1.
    """
    frame = torch.arange(1, change.shape[1] + 1) - (block if first_block is None else first_block)
    across = (frame >= 0) & (frame % block == 0)
    if not across.any() or across.all():
        return torch.ones(change.shape[0], dtype=torch.float64)
    return (change[:, across].mean(dim=1) + STILL) / (change[:, ~across].mean(dim=1) + STILL)


def changes(frames: Tensor) -> Tensor:
    """Mean absolute difference of each frame to the one before: uint8 (V, F, H, W, 3) -> (V, F - 1), grey levels."""
    return frames.flatten(2).float().diff(dim=1).abs().mean(dim=2).double()
