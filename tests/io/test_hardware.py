"""The memory that a process has had: the host's on a CPU, and its GPU's beside it, never one for the other."""

from __future__ import annotations

import psutil
import pytest
import torch

from hiar.io.hardware import peak_memory_mb


def test_on_a_cpu_it_is_the_hosts_and_no_gpus() -> None:
    held = torch.ones(2**25)  # 128 MB
    now = psutil.Process().memory_info().rss / 2**20
    peak = peak_memory_mb("cpu")
    del held
    assert list(peak) == ["peak_memory_mb"]
    assert now - 1 <= peak["peak_memory_mb"] < psutil.virtual_memory().total / 2**20
    assert peak_memory_mb("cpu")["peak_memory_mb"] >= peak["peak_memory_mb"]  # of all that was, not of what is


def test_a_gpus_is_beside_it_unless_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5 * 2**30)
    peak = peak_memory_mb("auto")
    assert (peak["peak_gpu_memory_mb"], peak["peak_gpu_memory_kept_mb"]) == (3072, 5120)
    assert peak["peak_memory_mb"] == pytest.approx(peak_memory_mb("cpu")["peak_memory_mb"], abs=1)
    assert list(peak_memory_mb("cpu")) == ["peak_memory_mb"]
