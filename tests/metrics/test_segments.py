import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hiar.metrics.segments import segment_centres, segment_means, trend


def test_means_of_equal_parts():
    assert segment_means(torch.arange(10.0)[None], 5).tolist() == [[0.5, 2.5, 4.5, 6.5, 8.5]]


def test_parts_that_do_not_divide_the_frames_cover_all_of_them_once():
    means = segment_means(torch.arange(7.0)[None], 3)
    assert means.tolist() == [[1.0, 3.5, 5.5]]  # frames 0-2, 3-4, 5-6
    assert torch.allclose(segment_centres(7, 3) * 7 - 0.5, means[0])


def test_fewer_frames_than_segments_are_refused():
    with pytest.raises(ValueError, match="3 frames cannot be cut into 5 segments"):
        segment_means(torch.zeros(1, 3), 5)


@given(
    start=st.floats(-10, 10),
    rise=st.floats(-10, 10),
    frames=st.integers(1, 50),
    segments=st.integers(1, 8),
)
def test_trend_of_a_line_is_its_rise_over_the_video(start, rise, frames, segments):
    if frames < segments:
        return
    line = start + rise * torch.arange(frames, dtype=torch.float64)[None] / frames
    expected = rise if segments > 1 else 0.0
    assert trend(line, segments).item() == pytest.approx(expected, abs=1e-9)


def test_trend_is_the_slope_over_the_segment_index_scaled_to_the_video():
    means = torch.tensor([0.3, 0.9, 0.2, 0.8, 0.7], dtype=torch.float64)
    index = torch.arange(5, dtype=torch.float64)
    slope = torch.linalg.lstsq(torch.stack([index, torch.ones(5)], dim=1).double(), means[:, None]).solution[0].item()
    assert trend(means.repeat_interleave(4)[None], 5).item() == pytest.approx(5 * slope)
