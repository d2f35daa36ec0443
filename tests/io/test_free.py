"""Available memory is what is free, not the total, and exactly that much fits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hiar.errors import UserError
from hiar.io import free


def test_what_is_free_fits_and_a_byte_more_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free, "free_bytes", lambda device: {"cpu": 1000}[device.type])
    free.require_memory("model", 1000)
    with pytest.raises(UserError, match=r"^model: takes 1e-06 GB of memory, 1e-06 GB are free; end other programs"):
        free.require_memory("model", 1001)


def test_of_the_host_it_is_what_programs_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Including the page cache, which ``free`` leaves out."""
    told = SimpleNamespace(total=80, available=43, free=3, used=37)
    monkeypatch.setattr("psutil.virtual_memory", lambda: told)
    assert free.free_bytes(torch.device("cpu")) == 43


def test_of_a_gpu_it_is_what_others_leave_and_what_torch_keeps_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, told in {"mem_get_info": (3, 80), "memory_reserved": 50, "memory_allocated": 10}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, told=told: told)
    assert free.free_bytes(torch.device("cuda")) == 43
