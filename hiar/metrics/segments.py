"""Segments of a video, equal parts in time, and the trend over them."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_means(per_frame: Tensor, segments: int) -> Tensor:
    """Mean of a per-frame measure in each segment of the video: (V, F) -> (V, segments), float64.

    Segments are equal; when F is no multiple of ``segments`` the first ones hold one frame more.
    Raises ValueError when a video has fewer frames than segments.
    """
    if per_frame.shape[1] < segments:
        raise ValueError(f"{per_frame.shape[1]} frames cannot be cut into {segments} segments")
    parts = torch.tensor_split(per_frame.double(), segments, dim=1)
    return torch.stack([part.mean(dim=1) for part in parts], dim=1)


def segment_centres(frames: int, segments: int) -> Tensor:
    """The middle of each segment, as a fraction of the video: (segments,) in (0, 1), float64."""
    parts = torch.tensor_split(torch.arange(frames, dtype=torch.float64), segments)
    return torch.stack([part.mean() + 0.5 for part in parts]) / frames


def trend(per_frame: Tensor, segments: int) -> Tensor:
    """Least-squares slope of the segment means over time: (V, F) -> (V,), in units of the measure per whole video.

    Time runs from 0 to 1, so the slope is the fitted change over the video: with equal parts, ``segments`` times the
    slope over the segment index (Sec. 4.1). One segment has no trend: 0.
    """
    means = segment_means(per_frame, segments)
    return slope(means, segment_centres(per_frame.shape[1], segments))


def slope(means: Tensor, centres: Tensor) -> Tensor:
    """Least-squares slope of values (..., segments) at times (segments,): (...); 0 for a single segment."""
    if len(centres) == 1:
        return torch.zeros_like(means[..., 0])
    time = centres - centres.mean()
    return (means - means.mean(dim=-1, keepdim=True)) @ time / time.square().sum()
