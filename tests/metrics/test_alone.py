"""A video's measure does not depend on the other videos in the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hiar.metrics.continuity import border_jump, changes
from hiar.metrics.drift import colorfulness, drift, saturation, sharpness, shift
from hiar.metrics.forms import first_last, floor, forms, share, vde
from hiar.metrics.motion import dynamic, hops, smoothed_speed
from hiar.metrics.segments import segment_means, slope, trend

VIDEOS, FRAMES, SEGMENTS = 3, 12, 5
RANDOM = torch.Generator().manual_seed(0)
PIXELS = torch.randint(256, (VIDEOS, FRAMES, 6, 8, 3), dtype=torch.uint8, generator=RANDOM)
SERIES = torch.rand(VIDEOS, FRAMES, generator=RANDOM)
PLACES = 20 * torch.rand(VIDEOS, FRAMES, 2, generator=RANDOM)
MEANS = segment_means(SERIES, SEGMENTS)
MEASURES: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "border jump": (lambda change: border_jump(change, block=3), SERIES),
    "changes": (changes, PIXELS),
    "colorfulness": (colorfulness, PIXELS),
    "saturation": (saturation, PIXELS),
    "sharpness": (sharpness, PIXELS),
    "drift": (lambda series: drift(series, SEGMENTS), SERIES),
    "shift of numbers": (lambda series: shift(series, SEGMENTS), SERIES),
    "shift of vectors": (lambda places: shift(places, SEGMENTS), PLACES),
    "segment means": (lambda series: segment_means(series, SEGMENTS), SERIES),
    "trend": (lambda series: trend(series, SEGMENTS), SERIES),
    "slope": (lambda means: slope(means, torch.linspace(0.1, 0.9, SEGMENTS).double()), MEANS),
    "forms": (lambda series: torch.stack([*forms(series, SEGMENTS).values()], dim=1), SERIES),
    "first and last": (first_last, SERIES),
    "floor": (lambda means: floor(means, FRAMES), MEANS),
    "vde": (vde, MEANS),
    "share": (lambda means: share(torch.ones(len(means)), means), MEANS),
    "speed": (smoothed_speed, PLACES),
    "hops": (lambda places: hops(places, threshold=9.0), PLACES),
    "dynamic": (lambda speeds: dynamic(speeds, slowest=8.0), torch.tensor([3.9, 4.0, 8.0])),
}


@pytest.mark.parametrize("name", MEASURES)
def test_each_video_is_measured_as_if_alone(name: str) -> None:
    measure, videos = MEASURES[name]
    together = measure(videos)
    alone = torch.cat([measure(video[None]) for video in videos])
    assert together.shape[0] == VIDEOS
    torch.testing.assert_close(together, alone)
    assert len({*map(str, together.flatten(1).tolist() if together.ndim > 1 else together.tolist())}) > 1


def test_shift_of_numbers_is_that_of_vectors_of_one_component() -> None:
    torch.testing.assert_close(shift(SERIES, SEGMENTS), shift(SERIES[..., None], SEGMENTS))
    torch.testing.assert_close(shift(SERIES, SEGMENTS), (MEANS - MEANS[:, :1]).abs())
