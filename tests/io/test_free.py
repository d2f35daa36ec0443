"""Free memory, not the total, is what a model must fit in, to the byte."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hiar.errors import UserError
from hiar.io import free


def test_what_is_free_fits_and_a_byte_more_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free, "free_bytes", lambda device: {"cpu": 1000}[device.type])
    free.require_memory("model", 1000)
    with pytest.raises(UserError, match=r"^model: takes 1 kB of memory, 1 kB are free; end other programs"):
        free.require_memory("model", 1001)


def test_free_host_memory_includes_the_page_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which psutil counts as ``available`` and not as ``free``."""
    memory = SimpleNamespace(total=80, available=43, free=3, used=37)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert free.free_bytes(torch.device("cpu")) == 43


def test_free_gpu_memory_includes_what_torch_keeps_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"mem_get_info": (3, 80), "memory_reserved": 50, "memory_allocated": 10}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free.free_bytes(torch.device("cuda")) == 43


@pytest.mark.parametrize(
    ("gigabytes", "said"),
    [
        (1.5, "1.5 GB"),
        (12.345, "12.3 GB"),
        (99.97, "100 GB"),
        (123.6, "124 GB"),
        (999.7, "1000 GB"),
        (1234.6, "1235 GB"),
        (1e-4, "0.0001 GB"),
        (6.144e-5, "61.4 kB"),
        (0, "0 kB"),
    ],
)
def test_a_size_has_three_digits_or_all_before_the_point_and_no_exponent(gigabytes: float, said: str) -> None:
    assert free.gigabytes(gigabytes * free.GB) == said
