"""Measures between frames, on pictures with known answers."""

import cv2
import numpy as np
import pytest

from hiar.profiles import pairs


def texture(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(("share", "golden"), [(0.05, 0.9973346903040481), (0.5, 0.6620736649511807)])
def test_ssim_is_that_of_scikit_image(share, golden):
    """structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)."""
    random = np.random.default_rng(0)
    one = random.integers(0, 256, (40, 56), dtype=np.uint8)
    if share == 0.5:
        random.integers(0, 256, one.shape)  # skips the other picture of the first case
    other = (one * (1 - share) + random.integers(0, 256, one.shape) * share).round().astype(np.uint8)
    assert pairs.ssim(one, other) == pytest.approx(golden, abs=1e-9)
    assert pairs.ssim(one, one) == 1


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 222), (63, 97)])
@pytest.mark.parametrize("shift", [1, 3])
def test_flow_finds_a_shift_and_brings_the_picture_back(shift, height, width):
    whole = texture(height, width + shift)
    one, other = whole[:, shift:].copy(), whole[:, :-shift].copy()  # moves right
    flow = pairs.flow_between(one, other)
    assert np.median(flow[..., 0]) == pytest.approx(shift, abs=0.1)
    assert pairs.magnitude(flow) == pytest.approx(100 * shift / min(height, width), rel=0.1)
    unmoved = np.abs(one.astype(float) - other).mean() / 255
    assert pairs.warp_error(one, other, flow) < unmoved / 4


def test_flow_of_known_length_and_direction():
    one = texture(32, 40)
    flow = np.zeros((32, 40, 2), np.float32)
    flow[..., 0], flow[..., 1] = 3, 4
    assert pairs.magnitude(flow) == pytest.approx(100 * 5 / 32)
    half = np.where(np.arange(32)[:, None, None] < 16, flow, 0)  # the mean of lengths, not the root of mean squares
    assert pairs.magnitude(half) == pytest.approx(100 * 2.5 / 32)
    other = np.roll(one, (4, 3), axis=(0, 1))
    assert pairs.warp_error(one, other, flow) == 0
    assert pairs.warp_error(one, other, -flow) > 0.05


def test_pixels_that_leave_the_frame_do_not_count_unless_all_do():
    one, other = texture(32, 40), texture(32, 40, seed=1)
    away = np.full((32, 40, 2), 1000, np.float32)
    assert pairs.warp_error(one, other, away) == pytest.approx(np.abs(one.astype(float) - other).mean() / 255)
    away[:, 0] = 0  # except the first column
    expected = np.abs(one[:, 0].astype(float) - other[:, 0]).mean() / 255
    assert pairs.warp_error(one, other, away) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((480, 832), 256, (240, 416)),
        ((480, 832), 128, (120, 208)),
        ((64, 64), 128, (64, 64)),
        ((301, 515), 128, (150, 257)),
    ],
)
def test_pictures_are_made_smaller_by_whole_factors(size, side, expected):
    grey = texture(*size)
    small = pairs.reduced(grey, side)
    assert small.shape == expected
    assert small.mean() == pytest.approx(grey.mean(), abs=1)


def test_a_reduced_pixel_is_the_mean_of_its_square():
    grey = np.random.default_rng(0).integers(0, 256, (12, 15), dtype=np.uint8)
    means = grey.reshape(4, 3, 5, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(pairs.reduced(grey, 4), means, atol=0.5)


def test_grey_is_luma():
    colors = np.zeros((1, 4, 3), np.uint8)
    colors[0, [0, 1, 2], [0, 1, 2]] = 255
    assert pairs.grey_of(colors).tolist() == [[76, 150, 29, 0]]


def test_pixels_from_the_edge_count_and_those_from_beyond_do_not():
    size = (4, 4)
    for axis in (0, 1):
        for step, edge in ((1, 3), (-1, 0)):
            flow = np.zeros((*size, 2), np.float32)
            flow[..., axis] = step
            one, other = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
            other[(slice(None), edge) if axis == 0 else edge] = 255
            assert pairs.warp_error(one, other, flow) == pytest.approx(1 / 3)  # one of three rows or columns is wrong
            flat = np.full(size, 100, np.uint8)
            assert pairs.warp_error(flat, flat, flow) == 0
