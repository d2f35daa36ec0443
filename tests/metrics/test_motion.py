import pytest
import torch

from hiar.metrics.motion import dynamic, hops, smoothed_speed


def straight(velocity, frames=20):
    """One object at constant velocity."""
    return (torch.arange(frames)[:, None] * torch.tensor(velocity))[None]


def test_speed_of_a_straight_line():
    assert smoothed_speed(straight((3.0, 4.0))).item() == pytest.approx(5)
    assert smoothed_speed(straight((0.0, 0.0))).item() == 0


def test_one_misread_frame_does_not_move_the_object():
    position = straight((1.0, 0.0))
    position[0, 9] = torch.tensor([60.0, 60.0])
    assert smoothed_speed(position).item() == pytest.approx(1, rel=0.1)


def test_smoothing_reduces_jitter_to_a_third():
    shaking = torch.zeros(1, 300, 2)
    shaking[..., 0] = torch.randn(300, generator=torch.Generator().manual_seed(0))
    raw = shaking.diff(dim=1).norm(dim=-1).mean()
    assert smoothed_speed(shaking).item() < raw / 3


def test_speed_needs_at_least_4_frames():
    assert smoothed_speed(straight((2.0, 0.0), frames=4)).item() == pytest.approx(2)
    with pytest.raises(ValueError, match="at least 4 frames"):
        smoothed_speed(straight((2.0, 0.0), frames=3))


def test_hops_are_counted_per_hundred_steps():
    position = straight((2.0, 0.0), frames=51)
    position[:, 20:, 1] += 12
    position[:, 40:, 1] -= 12
    assert hops(position, threshold=9).item() == pytest.approx(100 * 2 / 50)
    assert hops(straight((9.0, 0.0)), threshold=9).item() == 0


def test_dynamic_asks_for_half_the_slowest_speed():
    moves = dynamic(torch.tensor([0.7, 0.75, 3.0]), slowest=1.5)
    assert moves.tolist() == [0, 1, 1]
    assert moves.dtype == torch.float64  # its mean is taken later
