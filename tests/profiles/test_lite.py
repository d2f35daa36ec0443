"""The profile drift-lite on clips with known answers."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hiar.metrics.drift import colorfulness
from hiar.metrics.segments import segment_centres
from hiar.profiles import pairs
from hiar.profiles.lite import FRAME, NAME, PAIR, RECIPE, DriftLite, open_profile
from hiar.profiles.profile import Profile
from hiar.profiles.recipe import drift_metrics

METRICS = (*FRAME, *PAIR)


def scored(frames):
    """Metrics of one video (F, H, W, 3)."""
    lite = DriftLite()
    return {name: value.item() for name, value in lite.measure(lite.look(frames[None], None, [])).items()}


def texture(seed=0, height=48, width=64):
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return smooth.permute(1, 2, 0).mul(255).round().to(torch.uint8)


def moving(frames, seed=0):
    """A texture that moves by a pixel per frame and wraps around."""
    return torch.stack([texture(seed).roll(number, dims=1) for number in range(frames)])


def of_saturation(levels, height=32, width=32):
    """A video with one colour per frame, of these saturations."""
    frames = torch.full((len(levels), height, width, 3), 250, dtype=torch.uint8)
    frames[..., 1:] = (
        (250 * (1 - torch.as_tensor(levels, dtype=torch.float64))).round().to(torch.uint8)[:, None, None, None]
    )
    return frames


def checkers(amplitudes, side=32):
    """Checkerboards of grey 128 +- an amplitude per frame; the Laplacian of each pixel is 8 times its amplitude."""
    sign = torch.tensor([1, -1])[torch.arange(side)[:, None].add(torch.arange(side)) % 2]
    grey = 128 + torch.as_tensor(amplitudes)[:, None, None] * sign
    return grey.to(torch.uint8)[..., None].expand(-1, -1, -1, 3).contiguous()


@pytest.mark.parametrize("frames", [60, 59, 6])
@pytest.mark.parametrize("rise", [0.5, -0.4])
def test_saturation_trend_equals_a_known_slope(frames, rise):
    levels = 0.45 + rise * ((torch.arange(frames) + 0.5) / frames - 0.5)
    metrics = scored(of_saturation(levels))
    assert metrics["saturation"] == pytest.approx(0.45, rel=0.01)
    assert metrics["saturation_trend"] == pytest.approx(rise, rel=0.01)
    assert metrics["saturation_drift"] == abs(metrics["saturation_trend"])
    assert metrics["sharpness_drift"] == 0


@pytest.mark.parametrize("frames", [60, 59])
def test_sharpness_trend_equals_a_known_slope(frames):
    amplitudes = torch.cat(
        [torch.full((len(part),), 20 + 10 * n) for n, part in enumerate(torch.arange(frames).tensor_split(5))]
    )
    metrics = scored(checkers(amplitudes))
    means = [64 * (20 + 10 * n) ** 2 for n in range(5)]
    assert [metrics[f"sharpness_segment_{n + 1}"] for n in range(5)] == pytest.approx(means, rel=1e-3)
    slope = np.polyfit(segment_centres(frames, 5).numpy(), means, 1)[0]
    assert metrics["sharpness_trend"] == pytest.approx(slope, rel=0.01)
    assert metrics["saturation_drift"] == metrics["colorfulness_drift"] == 0


def test_colorfulness_is_hasler_and_suesstrunks():
    orange, grey = torch.tensor([200, 40, 0]), torch.tensor([90, 90, 90])
    half = torch.stack([orange, grey]).repeat(8, 1).view(1, 1, 4, 4, 3).to(torch.uint8)
    # rg is 160 and 0, yb is 120 and 0: deviations of 80 and 60, means of 80 and 60
    assert colorfulness(half).item() == pytest.approx((80**2 + 60**2) ** 0.5 * 1.3)
    assert colorfulness(torch.full_like(half, 90)).item() == 0


def test_a_frozen_video_has_no_drift_at_all():
    metrics = scored(texture().expand(30, -1, -1, -1))
    assert (metrics["ssim"], metrics["warp_error"], metrics["flow"]) == (1, 0, 0)
    for name in (
        "drift_lite",
        "drift_lite_floor",
        *(f"{name}_{form}" for name in METRICS for form in ("drift", "floor", "first_last", "vde")),
    ):
        assert metrics[name] == pytest.approx(0, abs=1e-9), name


def test_a_reversed_video_drifts_the_other_way():
    levels = torch.linspace(0.2, 0.7, 30).square()
    frames = moving(30).float().lerp(of_saturation(levels, 48, 64).float(), 0.5).to(torch.uint8)
    forth, back = scored(frames), scored(frames.flip(0))
    for name in FRAME:
        assert back[f"{name}_trend"] == pytest.approx(-forth[f"{name}_trend"], rel=1e-6)
        assert back[f"{name}_first_last"] == pytest.approx(forth[f"{name}_first_last"], rel=1e-6)
    assert back["ssim"] == pytest.approx(forth["ssim"], rel=1e-12)


def test_a_video_that_jumps_every_third_frame_has_no_drift():
    one, other = texture(1), texture(2)
    metrics = scored(torch.stack([one if number // 3 % 2 == 0 else other for number in range(31)]))
    there, back = scored(torch.stack([one, *[other] * 5])), scored(torch.stack([other, *[one] * 5]))
    for name, still in (("ssim", 1), ("warp_error", 0), ("flow", 0)):
        jumps = there[f"{name}_segment_1"], back[f"{name}_segment_1"]
        assert min(abs(jump - still) for jump in jumps) > 0.01
        # Two of the six pairs of each segment jump, one there and one back.
        for part in range(1, 6):
            assert metrics[f"{name}_segment_{part}"] == pytest.approx((sum(jumps) + 4 * still) / 6, rel=1e-9)
        assert metrics[f"{name}_drift"] == pytest.approx(0, abs=1e-9)


def test_ssim_is_measured_at_256_pixels_and_flow_at_128():
    noise = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 256, 256, 3), dtype=torch.uint8, generator=noise)
    frames = frames[[0, 1, 0, 1, 0, 1]]
    metrics = scored(frames)
    one, other = (pairs.grey_of(frame) for frame in frames[:2].numpy())
    assert metrics["ssim"] == pytest.approx(pairs.ssim(one, other))
    forth, back = (
        pairs.magnitude(pairs.flow_between(pairs.reduced(a, 128), pairs.reduced(b, 128)))
        for a, b in ((one, other), (other, one))
    )
    assert metrics["flow"] == pytest.approx((3 * forth + 2 * back) / 5)


def test_a_records_hash_does_not_depend_on_the_order_of_keys():
    one, other = ({"version": 1, "weights": {"a": 1, "b": 2}}, {"weights": {"b": 2, "a": 1}, "version": 1})
    hashes = {Profile("x", DriftLite(), record).record_hash for record in (one, other)}
    assert len(hashes) == 1
    assert Profile("x", DriftLite(), one | {"version": 2}).record_hash not in hashes


def test_videos_of_odd_sizes_are_measured():
    for height, width in ((17, 63), (65, 31), (301, 203)):
        metrics = scored(of_saturation([0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 0.9, 0.9], height, width))
        assert metrics["saturation_segment_3"] == pytest.approx(0.6)
        assert metrics["saturation_first_last"] == pytest.approx(0.7)


def test_the_score_grows_with_the_damage():
    clean = moving(30).float()
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=random)
    grey = clean.mean(dim=-1, keepdim=True).expand_as(clean)
    time = torch.linspace(0, 1, 30)[:, None, None, None]
    scores = []
    for damage in torch.linspace(0, 1, 10):
        share = damage * time
        frames = (clean + 0.8 * share * (grey - clean) + 40 * share * noise).round().clamp(0, 255).to(torch.uint8)
        scores.append(scored(frames)["drift_lite"])
    assert scores == sorted(scores)
    assert scores[-1] > 10 * scores[0]


def test_the_score_is_the_weighted_sum_of_relative_slopes():
    metrics = scored(moving(30).float().mul(torch.linspace(0.5, 1, 30)[:, None, None, None]).to(torch.uint8))
    for end, form in (("", "drift"), ("_floor", "floor")):
        shares = [
            RECIPE.weights[name]
            * metrics[f"{name}_{form}"]
            / (sum(metrics[f"{name}_segment_{part}"] for part in range(1, 6)) / 5)
            for name in METRICS
        ]
        assert metrics[f"drift_lite{end}"] == pytest.approx(sum(shares))
    assert sum(RECIPE.weights.values()) == pytest.approx(1)


def test_parts_and_batches_give_the_same_bits():
    lite = DriftLite()
    videos = torch.stack([moving(20), moving(20, seed=3)])
    whole = lite.look(videos, None, [])
    for cut in (1, 7):
        before, found = None, []
        for part in videos.split(cut, dim=1):
            found.append(lite.look(part, before, []))
            before = part[:, -1:]
        assert all(torch.equal(torch.cat([one[name] for one in found], dim=1), whole[name]) for name in METRICS)
    together = lite.measure(whole)
    for number, video in enumerate(videos):
        alone = lite.measure(lite.look(video[None], None, []))
        assert all(torch.equal(alone[name][0], together[name][number]) for name in alone)


def test_series_of_any_source_are_aggregated():
    courses = {name: torch.ones(2, 30) for name in RECIPE.weights}
    courses["ssim"] = torch.linspace(0.5, 1.5, 30).expand(2, -1)
    metrics = drift_metrics(RECIPE, courses)
    assert metrics["drift_lite"].tolist() == pytest.approx([metrics["ssim_trend"][0].item() / 6] * 2)
    with pytest.raises(KeyError):
        drift_metrics(RECIPE, {"ssim": courses["ssim"]})
    with pytest.raises(ValueError, match="4 frames cannot be cut into 5 segments"):
        drift_metrics(RECIPE, {name: torch.ones(1, 4) for name in RECIPE.weights})


def test_the_record_names_what_made_a_result():
    record = open_profile().record
    assert record["profile"] == NAME
    assert record["metrics"].keys() == record["weights"].keys() == set(METRICS)
    assert record["packages"].keys() == {"av", "numpy", "opencv-python-headless", "torch"}
    assert (record["segments"], record["models"]) == (5, [])


def test_opencv_uses_as_many_threads_as_torch():
    cv2.setNumThreads(torch.get_num_threads() + 1)
    open_profile()
    assert cv2.getNumThreads() == torch.get_num_threads()
