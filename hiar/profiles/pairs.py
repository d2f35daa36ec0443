"""Metrics between consecutive frames that need no weights: structural similarity and optical flow.

Both work on reduced grey pictures: SSIM as its authors do, the more expensive flow on smaller ones.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Flow = NDArray[np.float32]

SSIM_SIDE = 256  # pixels of the shorter side, about: the rule of SSIM's authors
FLOW_SIDE = 128
LEAST_SIDE = 16  # pixels that optical flow needs
WINDOW, SIGMA = 11, 1.5  # of SSIM (Wang et al. 2004), as are its constants
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def grey_of(frame: NDArray[np.uint8]) -> Grey:
    """Luma (H, W) of a frame (H, W, 3)."""
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def reduced(grey: Grey, side: int) -> Grey:
    """A picture reduced by averaging, by the whole factor that brings its shorter side closest to ``side``."""
    height, width = grey.shape
    factor = max(1, round(min(height, width) / side))
    if factor == 1:
        return grey
    return np.asarray(cv2.resize(grey, (width // factor, height // factor), interpolation=cv2.INTER_AREA), np.uint8)


def ssim(one: Grey, other: Grey) -> float:
    """Mean structural similarity of two pictures (H, W), over windows that lie inside; 1 for equal ones."""
    x, y = one.astype(np.float64), other.astype(np.float64)

    def window(picture: NDArray[np.float64]) -> NDArray[np.float64]:
        edge = WINDOW // 2
        blurred = cv2.GaussianBlur(picture, (WINDOW, WINDOW), SIGMA)
        return np.asarray(blurred, np.float64)[edge:-edge, edge:-edge]

    mean_x, mean_y = window(x), window(y)
    var_x, var_y = window(x * x) - mean_x**2, window(y * y) - mean_y**2
    both = window(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * both + C2)
    return float((likeness / ((mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2))).mean())


def flow_between(one: Grey, other: Grey) -> Flow:
    """Where each pixel of one picture goes in the other, (H, W, 2) in pixels: DIS (Kroeger et al. 2016), medium."""
    flow = np.zeros((*one.shape, 2), np.float32)  # no initial estimate
    return np.asarray(cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(one, other, flow), np.float32)


def warp_error(one: Grey, other: Grey, flow: Flow) -> float:
    """Mean absolute difference, between 0 and 1, of a picture and the other one warped back along the flow.

    Pixels that leave the frame do not count, unless all do: then nothing is warped.
    """
    height, width = one.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + flow[..., 0], y + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    back = cv2.remap(other.astype(np.float32), x, y, cv2.INTER_LINEAR) if inside.any() else other
    away = np.abs(back - one.astype(np.float32))
    return float(away[inside if inside.any() else ...].mean(dtype=np.float64) / 255)


def magnitude(flow: Flow) -> float:
    """Mean length of the flow between two frames, in percent of the shorter side."""
    length = np.sqrt(np.square(flow, dtype=np.float64).sum(axis=-1)).mean()
    return float(100 * length / min(flow.shape[:2]))
