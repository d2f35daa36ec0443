"""A run's hardware as reported: GPUs, cores and peak memory; and that proxies are bypassed for this machine."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import torch
from commands import environment

from hiar.io.hardware import hardware, peak_memory_mb
from hiar.io.loopback import past_proxies


def test_gpus_are_named_where_a_run_may_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"is_available": True, "device_count": 2, "get_device_name": "NVIDIA H200"}
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert hardware("auto") == hardware("cuda") == "2x NVIDIA H200"
    assert (hardware("auto", 1), hardware("cuda", 16)) == ("1x NVIDIA H200", "16x NVIDIA H200")
    assert hardware("cpu", 4) == hardware("cpu")
    assert hardware("cpu").endswith(f", {os.cpu_count()} cores")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware("auto") == hardware("cpu")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system keeps no process to some cores")
def test_cores_are_those_that_a_process_may_use() -> None:
    """A container may have fewer than its machine."""
    code = "import os\nfrom hiar.io.cores import process_cores\nos.sched_setaffinity(0, {CORE})\nprint(process_cores())"
    code = code.replace("CORE", str(min(os.sched_getaffinity(0))))
    assert subprocess.check_output([sys.executable, "-c", code], env=environment(), text=True) == "1\n"


def test_this_machine_is_reached_past_every_proxy() -> None:
    """In both spellings of no_proxy; hosts that the user has named in either are kept, each once."""
    found = past_proxies({"no_proxy": "a.example, localhost,c.example", "NO_PROXY": ".b.example,,a.example"})
    assert found["NO_PROXY"] == found["no_proxy"]
    hosts = found["NO_PROXY"].split(",")
    assert sorted(hosts) == [".b.example", "127.0.0.1", "::1", "a.example", "c.example", "localhost"]
    assert past_proxies({})["no_proxy"].split(",") == ["localhost", "127.0.0.1", "::1"]


def test_peak_memory_on_a_cpu_is_the_hosts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    held = torch.ones(2**25)  # 128 MB
    now = psutil.Process().memory_info().rss / 2**20
    peak = peak_memory_mb("cpu")
    del held
    assert list(peak) == ["peak_memory_mb"]
    assert now - 1 <= peak["peak_memory_mb"] < psutil.virtual_memory().total / 2**20
    assert peak_memory_mb("cpu")["peak_memory_mb"] >= peak["peak_memory_mb"]  # the peak so far, not the current value
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(peak_memory_mb("auto")) == ["peak_memory_mb"]


def test_peak_gpu_memory_is_reported_only_if_the_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5 * 2**30)
    peak = peak_memory_mb("auto")
    assert (peak["peak_gpu_memory_mb"], peak["peak_gpu_memory_kept_mb"]) == (3072, 5120)
    assert peak["peak_memory_mb"] == pytest.approx(peak_memory_mb("cpu")["peak_memory_mb"], abs=1)
    assert list(peak_memory_mb("cpu")) == ["peak_memory_mb"]
