import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hiar.metrics.summary import pool, summarise


def test_mean_and_standard_error():
    summary = summarise(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert summary == {"mean": 2.5, "se": pytest.approx(math.sqrt(5 / 3) / 2, rel=1e-5), "n": 4}


def test_mean_and_standard_error_have_six_digits():
    assert summarise(torch.tensor([1.0, 1.0, 0.0])) == {"mean": 0.666667, "se": 0.333333, "n": 3}


def test_two_videos_have_a_standard_error():
    assert summarise(torch.tensor([1.0, 3.0])) == {"mean": 2.0, "se": 1.0, "n": 2}


def test_one_video_has_no_standard_error():
    assert summarise(torch.tensor([0.25])) == {"mean": 0.25, "se": None, "n": 1}


@given(st.lists(st.lists(st.floats(-100, 100), min_size=4, max_size=4), min_size=1, max_size=4))
def test_pooled_seeds_of_equal_size_have_the_mean_of_all_videos(seeds):
    pooled = pool([summarise(torch.tensor(values, dtype=torch.float64)) for values in seeds])
    everything = [value for values in seeds for value in values]
    assert pooled["mean"] == pytest.approx(sum(everything) / len(everything), rel=1e-4, abs=1e-4)
    assert pooled["n"] == len(everything)


def test_pooling_shrinks_the_error_with_the_number_of_seeds():
    one = {"mean": 0.5, "se": 0.02, "n": 128}
    assert pool([one] * 4) == {"mean": 0.5, "se": pytest.approx(0.01), "n": 512}
    assert pool([one, {"mean": 0.5, "se": None, "n": 1}])["se"] is None
