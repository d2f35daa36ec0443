"""Each published form of drift against its definition, worked out by hand."""

import itertools

import numpy as np
import pytest
import torch

from hiar.metrics.forms import first_last, floor, forms, share, vde
from hiar.metrics.segments import segment_centres

MEANS = torch.tensor([[2.0, 3.0, 5.0, 4.0, 1.0]], dtype=torch.float64)


def test_vde_weighs_early_parts_most_and_is_relative_to_the_first():
    assert vde(MEANS).item() == pytest.approx((4 * 1 + 3 * 3 + 2 * 2 + 1 * 1) / 2)


def test_vde_of_zeros_is_0_and_is_undefined_if_only_the_first_is_0():
    values = vde(torch.tensor([[0.0, 0, 0], [0, 1, 0]]))
    assert values[0] == 0
    assert values[1].isnan()


@pytest.mark.parametrize(("frames", "count"), [(60, 9), (59, 9), (6, 1), (3, 1), (1, 1)])
def test_first_last_compares_15_percent_of_the_frames(frames, count):
    series = torch.arange(frames, dtype=torch.float64).square()[None]
    expected = series[0, frames - count :].mean() - series[0, :count].mean()
    assert first_last(-series).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("frames", [60, 59])
def test_the_floor_is_the_mean_slope_over_all_orders(frames):
    time = segment_centres(frames, 5).numpy()
    slopes = [abs(np.polyfit(time, order, 1)[0]) for order in itertools.permutations(MEANS[0].tolist())]
    assert floor(MEANS, frames).item() == pytest.approx(np.mean(slopes))


def test_steady_change_is_above_its_floor_and_noise_at_it():
    steady = forms(torch.linspace(1, 2, 60)[None], 5)
    assert steady["_drift"].item() > 2 * steady["_floor"].item()
    noise = forms(torch.randn(2000, 60, generator=torch.Generator().manual_seed(0)), 5)
    assert noise["_drift"].mean().item() == pytest.approx(noise["_floor"].mean().item(), rel=0.05)
    assert abs(noise["_trend"].mean().item()) < noise["_floor"].mean().item() / 10


def test_every_form_is_under_its_name():
    series = torch.tensor([[4.0, 4, 2, 2, 3, 3, 1, 1, 0, 0]])
    found = forms(series, 5)
    parts = {f"_segment_{n}": value for n, value in enumerate((4, 2, 3, 1, 0), start=1)}
    expected = {"": 2, "_trend": -4.5, "_drift": 4.5, "_first_last": 4, "_vde": (4 * 2 + 3 * 1 + 2 * 3 + 4) / 4} | parts
    assert found.keys() == expected.keys() | {"_floor"}
    assert {name: found[name].item() for name in expected} == pytest.approx(expected)


def test_a_share_is_relative_to_the_mean_magnitude_and_0_for_zeros():
    values = share(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([[2.0, 4.0], [-2.0, 2.0], [0.0, 0.0]]))
    assert values.tolist() == pytest.approx([1 / 3, 1 / 2, 0])
