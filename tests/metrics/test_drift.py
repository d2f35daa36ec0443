import colorsys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from hiar.metrics.drift import drift, saturation, sharpness, shift

SEGMENTS = 5
BYTE = st.integers(0, 255)


def plain(color, frames=10):
    """One video of one colour."""
    return torch.tensor(color, dtype=torch.uint8).expand(1, frames, 8, 8, 3)


@given(st.tuples(BYTE, BYTE, BYTE))
@example((1, 0, 0))
def test_saturation_is_that_of_hsv(color):
    expected = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))[1]
    assert saturation(plain(color, frames=1)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("fade", [0.8, -0.8])
def test_a_linear_ramp_of_saturation_drifts_by_its_rise(fade):
    start, frames = (0.1 if fade > 0 else 0.9), 50
    level = start + fade * torch.arange(frames) / frames
    video = torch.full((1, frames, 8, 8, 3), 200.0)
    video[..., 2] = (200 * (1 - level))[None, :, None, None]
    measured = drift(saturation(video.round().to(torch.uint8)), SEGMENTS)
    assert measured.item() == pytest.approx(0.8, abs=0.005)  # the resolution of 200 grey levels


def test_constant_videos_do_not_drift():
    video = torch.randint(256, (3, 1, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = video.expand(3, 20, 8, 8, 3)
    assert drift(saturation(video), SEGMENTS).tolist() == pytest.approx([0, 0, 0], abs=1e-7)
    assert drift(sharpness(video), SEGMENTS).tolist() == pytest.approx([0, 0, 0], abs=1e-2)
    assert shift(video.float().mean(dim=(2, 3)), SEGMENTS).abs().max() < 1e-5


def test_drift_does_not_cancel_between_videos():
    ramp = torch.linspace(0, 1, 20)
    assert drift(torch.stack([ramp, 1 - ramp]), SEGMENTS).diff().abs() < 1e-6


def test_sharpness_of_a_checkerboard():
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    video = (255 * board).to(torch.uint8)[None, None, :, :, None].expand(1, 1, 8, 8, 3)
    assert sharpness(video).item() == pytest.approx((4 * 255) ** 2, rel=1e-4)  # each pixel has four opposite neighbours
    assert sharpness(plain((10, 200, 30), frames=1)).item() == pytest.approx(0, abs=1e-6)
    colors = [sharpness(video * torch.eye(3, dtype=torch.uint8)[n]).item() for n in range(3)]
    shares = [(255 * share * 4) ** 2 for share in (0.299, 0.587, 0.114)]  # luma weights of red, green and blue
    assert colors == pytest.approx(shares, rel=1e-4)


def test_shift_is_the_distance_from_the_first_segment():
    color = torch.zeros(1, 10, 3)
    color[:, 2:4, 0] = 0.3
    color[:, 4:, 0], color[:, 4:, 1] = 0.3, 0.4
    assert shift(color, SEGMENTS)[0].tolist() == pytest.approx([0, 0.3, 0.5, 0.5, 0.5])
