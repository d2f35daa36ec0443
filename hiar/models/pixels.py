"""Conversion between uint8 frames, as files have them, and float videos in [-1, 1], as networks do."""

from __future__ import annotations

import torch
from torch import Tensor


def to_video(frames: Tensor) -> Tensor:
    """uint8 (..., F, H, W, 3) -> float (..., 3, F, H, W) in [-1, 1]."""
    return frames.movedim(-1, -4).float().div_(127.5).sub_(1)


def to_frames(video: Tensor) -> Tensor:
    """Float (..., 3, F, H, W), clipped to [-1, 1] -> uint8 (..., F, H, W, 3)."""
    return video.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).movedim(-4, -1).contiguous()
