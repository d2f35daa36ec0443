"""Drift in the form of Sec. 4.1: how far a measure of the frames moves, steadily, over a long video.

The paper's Drift (`hiar.profiles.drift`) feeds this recipe with MUSIQ, CLIP-IQA, DINOv2, LPIPS, saturation and
sharpness. The last two, below, need no weights; alone they are stand-ins, reported under their own names.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hiar.metrics.segments import segment_means, trend

LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as in every grey conversion of 8-bit RGB


def drift(per_frame: Tensor, segments: int) -> Tensor:
    """Absolute trend of a per-frame measure: (V, F) -> (V,), in units of the measure per whole video.

    Noise alone raises the mean of absolute values: the signed trend beside it tells whether all videos drift one way.
    """
    return trend(per_frame, segments).abs()


def shift(per_frame: Tensor, segments: int) -> Tensor:
    """Distance of each segment's mean from the first segment's: (V, F) or (V, F, D) -> (V, segments), first is 0.

    Euclidean for vectors.
    """
    vectors = per_frame if per_frame.ndim == 3 else per_frame.unsqueeze(-1)
    means = torch.stack([segment_means(component, segments) for component in vectors.unbind(dim=-1)], dim=-1)
    return (means - means[:, :1]).norm(dim=-1)


def saturation(frames: Tensor) -> Tensor:
    """Mean HSV saturation, (max - min) / max over RGB and 0 for black: uint8 (V, F, H, W, 3) -> (V, F) in [0, 1]."""
    red, green, blue = frames.unbind(dim=-1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    return ((high - low) / high.clamp(min=1)).mean(dim=(-2, -1))


def sharpness(frames: Tensor) -> Tensor:
    """Variance of the 4-neighbour Laplacian of luma, in squared grey levels: uint8 (V, F, H, W, 3) -> (V, F)."""
    grey = frames.float() @ torch.tensor(LUMA)
    centre = grey[..., 1:-1, 1:-1]
    neighbours = grey[..., :-2, 1:-1] + grey[..., 2:, 1:-1] + grey[..., 1:-1, :-2] + grey[..., 1:-1, 2:]
    return (neighbours - 4 * centre).var(dim=(-2, -1), unbiased=False)


def colorfulness(frames: Tensor) -> Tensor:
    """Hasler and Suesstrunk's (2003) measure of how colourful frames are: uint8 (V, F, H, W, 3) -> (V, F), grey 0."""
    red, green, blue = frames.movedim(-1, 0).float().contiguous()  # contiguous planes: sums along them are fast
    opponents = torch.stack([red - green, (red + green) / 2 - blue]).flatten(-2)
    means = opponents.mean(dim=-1, keepdim=True)
    spread = (opponents - means).square().mean(dim=-1).sum(dim=0).sqrt()
    return spread + 0.3 * means[..., 0].norm(dim=0)
