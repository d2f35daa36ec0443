"""Attention kernels are checked for correctness before they are timed, and the chosen one is the one that runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend

from hiar.models import kernels, timing
from hiar.models.attention import attend

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_has_two_correct_kernels(dtype: torch.dtype):
    found = kernels.measure_kernels(6, 30, heads=2, head_dim=12, batch=2, device=CPU, dtype=dtype)
    assert set(found) == {"flash", "math"}
    assert list(found.values()) == sorted(found.values())


def test_a_kernel_that_is_wrong_is_not_chosen_however_fast(monkeypatch: pytest.MonkeyPatch):
    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = attend(query, key, value)
        wrong = query.dtype != torch.float64 and not torch.backends.cuda.math_sdp_enabled()
        return out * 1.001 if wrong else out

    monkeypatch.setattr(kernels, "attend", attention)
    assert set(kernels.measure_kernels(6, 30, 2, 12, 1, CPU, torch.float32)) == {"math"}


def test_a_call_takes_the_median_of_its_times_after_the_warm_up(monkeypatch: pytest.MonkeyPatch):
    clock, took = [0.0], iter([100.0, 50.0, 3.0, 1.0, 9.0, 2.0, 4.0])

    def call() -> torch.Tensor:
        clock[0] += next(took)
        return torch.tensor(clock[0])

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    out, seconds = timing.timed(call, warm=2, counted=5)
    assert (out.item(), seconds) == (169.0, 3.0)


@pytest.mark.parametrize(
    ("enough", "median", "calls"),
    [(1000.0, 3.0, 7), (158.0, 3.0, 5), (154.0, 2.0, 4), (1.0, 50.0, 2)],
)
def test_slow_calls_are_fewer(enough: float, median: float, calls: int, monkeypatch: pytest.MonkeyPatch):
    clock, took, made = [0.0], [100.0, 50.0, 3.0, 1.0, 9.0, 2.0, 4.0], 0

    def call() -> torch.Tensor:
        nonlocal made
        clock[0] += took[made]
        made += 1
        return torch.tensor(clock[0])

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert timing.timed(call, 2, 5, enough)[1] == median
    assert made == calls


def test_the_chosen_kernel_comes_first_and_others_are_its_fallback():
    inputs = [torch.randn(1, 5, 2, 12, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    expected = attend(*inputs)
    with kernels.using("cudnn"):  # not available on any CPU
        torch.testing.assert_close(attend(*inputs), expected)
    with kernels.using("math"):
        order = torch._C._get_sdp_priority_order()
        assert order[0] == int(SDPBackend.MATH)
        torch.testing.assert_close(attend(*inputs), expected)
    with kernels.using(None):
        assert torch.equal(attend(*inputs), expected)
