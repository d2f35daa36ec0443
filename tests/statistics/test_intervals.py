import numpy as np
import pytest

from hiar.statistics.intervals import Interval, over_seeds, over_videos

TRIALS, VIDEOS = 2000, 128


def gaussian(random):
    """Differences of two samples whose means differ by 0.3 and that correlate by 0.7, and the true mean."""
    one, noise = random.standard_normal((2, TRIALS, VIDEOS))
    return (0.7 * one + np.sqrt(0.51) * noise + 0.3) - one, 0.3


def slopes(random):
    """Differences of absolute values of two such samples of mean 0, one scaled by 1.5, and the true mean."""
    one, noise = random.standard_normal((2, TRIALS, VIDEOS))
    return 1.5 * np.abs(0.7 * one + np.sqrt(0.51) * noise) - np.abs(one), 0.5 * np.sqrt(2 / np.pi)


def good_frames(random):
    """Differences of shares that are 1 for all but a few videos, and the true mean."""
    one, other = (1 - (random.random((TRIALS, VIDEOS)) < p) * random.random((TRIALS, VIDEOS)) for p in (0.06, 0.12))
    return other - one, -0.03


@pytest.mark.parametrize("samples", [gaussian, slopes, good_frames])
def test_the_interval_covers_the_truth_as_often_as_it_says(samples):
    differences, truth = samples(np.random.default_rng(0))
    intervals = [over_videos({0: trial}) for trial in differences]
    covered = np.mean([one.low <= truth <= one.high for one in intervals])
    assert 0.93 <= covered <= 0.97


def test_the_interval_over_seeds_covers_where_that_over_videos_does_not():
    """Because models of different seeds differ by more than the videos of one model."""
    random, seeds, videos = np.random.default_rng(1), 3, 32
    means = 0.3 + random.standard_normal((TRIALS, seeds, 1))
    values = means + 0.5 * random.standard_normal((TRIALS, seeds, videos))
    covered = {"seeds": [], "videos": []}
    for trial in values:
        for name, interval in (("seeds", over_seeds(trial.mean(1))), ("videos", over_videos(dict(enumerate(trial))))):
            covered[name].append(interval.low <= 0.3 <= interval.high)
    assert 0.93 <= np.mean(covered["seeds"]) <= 0.97
    assert np.mean(covered["videos"]) < 0.3


def test_the_error_over_videos_is_taken_within_each_seed():
    groups = {0: np.array([1.0, 2.0, 3.0]), 5: np.array([11.0, 12.0, 16.0])}
    interval = over_videos(groups)
    assert (interval.mean, interval.n) == (7.5, 6)
    error = np.sqrt(1 / 3 + 7 / 3) / 2
    assert interval.half == pytest.approx(2.7764451 * error)  # t of 4 degrees of freedom
    alone = over_videos({0: groups[0] - 2})
    assert (alone.mean, alone.low, alone.high, alone.n) == (0, -alone.half, alone.half, 3)
    assert alone.half == pytest.approx(4.3026527 / np.sqrt(3))


def test_too_few_values_have_no_interval():
    assert over_videos({0: np.array([1.0])}) is None
    assert over_videos({0: np.array([1.0]), 1: np.array([1.0, 2.0, 3.0])}) is None
    assert over_videos({0: np.array([1.0, 2.0])}).half == pytest.approx(12.7062047 / 2)  # t of 1 degree of freedom
    assert over_seeds([1.0]) is None
    assert over_seeds([1.0, 1.0]) == Interval(1.0, 1.0, 1.0, 2)


@pytest.mark.parametrize(("low", "high", "sign"), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.1, 0)])
def test_sign_is_0_unless_the_interval_excludes_zero(low, high, sign):
    assert Interval((low + high) / 2, low, high, 3).sign == sign
