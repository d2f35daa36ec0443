"""What is measured between consecutive frames without weights: structural similarity and optical flow.

Both look at grey pictures made smaller: SSIM as its authors do, flow, which is dear, further.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Flow = NDArray[np.float32]

SSIM_SIDE = 256  # pixels that the shorter side is brought to, about: SSIM's authors' rule
FLOW_SIDE = 128
LEAST_SIDE = 16  # pixels that optical flow needs
WINDOW, SIGMA = 11, 1.5  # of SSIM (Wang et al. 2004), as its constants
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def grey_of(frame: NDArray[np.uint8]) -> Grey:
    """Luma (H, W) of a frame (H, W, 3)."""
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)


def reduced(grey: Grey, side: int) -> Grey:
    """A picture with means of squares for pixels, as many to a side as bring the shorter one closest to ``side``."""
    height, width = grey.shape
    factor = max(1, round(min(height, width) / side))
    if factor == 1:
        return grey
    return np.asarray(cv2.resize(grey, (width // factor, height // factor), interpolation=cv2.INTER_AREA), np.uint8)


def ssim(one: Grey, other: Grey) -> float:
    """Mean structural similarity of two pictures (H, W), 1 for equal ones, where windows lie inside."""
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
    flow = np.zeros((*one.shape, 2), np.float32)  # where nothing is known yet
    return np.asarray(cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(one, other, flow), np.float32)


def warp_error(one: Grey, other: Grey, flow: Flow) -> float:
    """Mean absolute difference, of 1, between a picture and the other one brought back along the flow.

    Pixels that leave the frame do not count, unless all do: then nothing is brought back.
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
