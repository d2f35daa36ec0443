import pytest
import torch

from hiar.metrics.world import measure
from hiar.world.oracle import judge
from hiar.world.render import clips

BLOCK = 3
VIDEOS, FRAMES = 16, 60


@pytest.fixture(scope="module")
def true_clips(world):
    return clips(world, seed=3, first=0, count=VIDEOS, frames=FRAMES)


def measured(params, frames, captions):
    return measure(frames, judge(params.world, frames, captions), params.world, params.score, BLOCK)


def test_the_true_world_is_perfect(params, true_clips):
    metrics = measured(params, *true_clips)
    assert all(values.shape == (VIDEOS,) for values in metrics.values())
    assert (metrics["good"] == 1).all()
    assert (metrics["dynamic"] == 1).all()
    assert (metrics["hops"] == 0).all()
    assert metrics["saturation_drift"].max() < 0.005
    assert metrics["background_shift"].max() < 0.001
    assert metrics["border_jump"].mean().item() == pytest.approx(1, abs=0.05)
    slow, fast = params.world.speed
    assert (metrics["smoothed_speed"] > slow / 2).all()
    assert (metrics["smoothed_speed"] < fast).all()


def test_a_video_that_goes_wrong_half_way(params, true_clips):
    frames, captions = true_clips
    broken = frames.clone()
    random = torch.Generator().manual_seed(0)
    broken[:, FRAMES // 2 :] = torch.randint(256, frames.shape[2:], dtype=torch.uint8, generator=random)
    metrics = measured(params, broken, captions)
    assert metrics["good"].tolist() == pytest.approx([0.5] * VIDEOS)
    assert (metrics["good_segment_1"] == 1).all()
    assert (metrics["good_segment_5"] == 0).all()


def test_the_wrong_caption_is_not_good(params, true_clips):
    frames, captions = true_clips
    swapped = [f"a {'blue' if 'red' in caption else 'red'} disc moves" for caption in captions]
    assert measured(params, frames, swapped)["good"].max() == 0


def test_a_blank_video_is_not_good_and_does_not_move(params, true_clips):
    frames, captions = true_clips
    metrics = measured(params, torch.full_like(frames, 40), captions)
    assert metrics["good"].max() == 0
    assert metrics["dynamic"].max() == 0
    assert (metrics["border_jump"] == 1).all()


def test_a_fading_background_shifts(params, true_clips):
    frames, captions = true_clips
    fade = torch.linspace(0, 1, FRAMES)[None, :, None, None, None]
    lighter = (frames + fade * 60).clamp(max=255).to(torch.uint8)
    shift = measured(params, lighter, captions)["background_shift"]
    middle_to_middle = 60 / 255 * 48 / 59  # from the middle of the first to that of the last fifth
    assert shift.tolist() == pytest.approx([3**0.5 * middle_to_middle] * VIDEOS, rel=0.05)
