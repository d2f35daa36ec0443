import pytest
import torch

from hiar.judges.interface import open_judge
from hiar.judges.shapes.metrics import measured as measured_of
from hiar.judges.shapes.oracle import Judgement, judge
from hiar.metrics import continuity, drift, motion
from hiar.metrics.continuity import STILL
from hiar.metrics.looks import look
from hiar.metrics.segments import trend
from hiar.worlds.shapes.render import clips

BLOCK = 3
VIDEOS, FRAMES = 16, 60


@pytest.fixture(scope="module")
def true_clips(world):
    return clips(world, seed=3, first=0, count=VIDEOS, frames=FRAMES)


def measured(params, frames, captions):
    judgement = judge(params.world, frames, captions)
    return measured_of(look(frames), judgement, params.world, params.score, (BLOCK, BLOCK))


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


def test_a_video_that_breaks_half_way_is_half_good(params, true_clips):
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
    middle_to_middle = 60 / 255 * 48 / 59  # from the middle of the first fifth to that of the last
    assert shift.tolist() == pytest.approx([3**0.5 * middle_to_middle] * VIDEOS, rel=0.05)


def test_borders_follow_a_first_block_of_another_size(params):
    """Five frames in the first block, three in each later one; the video jumps at these borders alone."""
    levels = torch.arange(20)
    for border in (5, 8, 11, 14, 17):
        levels[border:] += 9
    frames = levels.to(torch.uint8)[None, :, None, None, None].expand(1, 20, 64, 64, 3)
    judge = open_judge(params.world, params.score, 5, BLOCK)
    metrics = judge.measure(judge.look(frames, None, ["a red disc moves"]))
    assert metrics["border_jump"].item() == pytest.approx((10 + STILL) / (1 + STILL))
    assert judge.least_frames == 5
    few = params.score.model_copy(update={"segments": 2})
    assert open_judge(params.world, few, 5, BLOCK).least_frames == motion.LEAST_FRAMES


def test_every_metric_is_what_its_name_says(params):
    """On two videos of ten frames, with a made-up judgement in which every measure has another value."""
    random = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 10, 12, 12, 3), dtype=torch.uint8, generator=random)
    score, world = params.score, params.world
    residual, color_error, background_error = torch.rand(3, 2, 10, generator=random).mul(0.06)
    residual[0, 0], color_error[0, 3], residual[1, 9] = score.good_residual, score.good_color, 0.5
    right = torch.ones(2, 10, dtype=torch.bool)
    right[0, 6:8] = False
    position = torch.cumsum(torch.tensor([[2.0, 0.0], [0.03, 0.04]])[:, None].expand(2, 10, 2), dim=1).contiguous()
    position[0, 5:, 1] += score.hop
    position[0, 8:, 1] += 0.9 * score.hop  # with the usual step, not as far as a hop
    background = torch.rand(2, 10, 3, generator=random)
    blank = torch.zeros(2, 10, 3)
    shape = torch.zeros(2, 10, dtype=torch.long)
    visible = torch.ones(2, 10, dtype=torch.bool)
    visible[1, :3] = False
    seen = Judgement(
        residual=residual,
        shape=shape,
        shape_right=right,
        visible=visible,
        color=blank,
        color_error=color_error,
        position=position,
        background=background,
        background_error=background_error,
    )
    metrics = measured_of(look(frames), seen, world, score.model_copy(update={"segments": 5}), (BLOCK, BLOCK))
    good = torch.ones(2, 10).double()
    good[0, [0, 3, 6, 7]], good[1, 9] = 0, 0  # a value at the threshold is not below it
    middles = background.double().view(2, 5, 2, 3).mean(dim=2)
    away = (middles - middles[:, :1]).norm(dim=-1)
    expected = {
        "good": good.mean(dim=1),
        "residual": residual.double().mean(dim=1),
        "shape_right": torch.tensor([0.8, 1.0]),
        "visible": torch.tensor([1.0, 0.7]),
        "color_error": color_error.double().mean(dim=1),
        "background_error": background_error.double().mean(dim=1),
        "smoothed_speed": motion.smoothed_speed(position),
        "hops": torch.tensor([100 / 9, 0.0]),
        "dynamic": (motion.smoothed_speed(position) >= world.speed[0] / 2).double(),
        "saturation_trend": trend(drift.saturation(frames), 5),
        "saturation_drift": trend(drift.saturation(frames), 5).abs(),
        "sharpness_trend": trend(drift.sharpness(frames), 5),
        "sharpness_drift": trend(drift.sharpness(frames), 5).abs(),
        "background_shift": away[:, -1],
        "border_jump": continuity.border_jump(continuity.changes(frames), BLOCK),
    }
    saturation = drift.saturation(frames).double().view(2, 5, 2).mean(dim=2)
    for n in range(5):
        expected |= {
            f"good_segment_{n + 1}": good.view(2, 5, 2).mean(dim=2)[:, n],
            f"saturation_segment_{n + 1}": saturation[:, n],
            f"saturation_shift_segment_{n + 1}": (saturation[:, n] - saturation[:, 0]).abs(),
            f"background_shift_segment_{n + 1}": away[:, n],
        }
    assert metrics.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(metrics[name].double(), values.double(), msg=name)
    assert expected["sharpness_trend"].sign().unique().tolist() == [-1, 1]
    assert expected["dynamic"].tolist() == [1, 0]
