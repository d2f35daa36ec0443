"""What a run computes on, as it is told and shared out."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from commands import environment

from hiar.io.hardware import hardware
from hiar.io.loopback import past_proxies


def test_gpus_are_named_where_a_run_may_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"is_available": True, "device_count": 2, "get_device_name": "NVIDIA H200"}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert hardware("auto") == hardware("cuda") == "2x NVIDIA H200"
    assert hardware("cpu").endswith(f", {os.cpu_count()} cores")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware("auto") == hardware("cpu")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system keeps no process to some cores")
def test_cores_are_those_that_a_process_may_use() -> None:
    """As in a container, which has fewer than the machine."""
    code = "import os\nfrom hiar.io.cores import process_cores\nos.sched_setaffinity(0, {CORE})\nprint(process_cores())"
    code = code.replace("CORE", str(min(os.sched_getaffinity(0))))
    assert subprocess.check_output([sys.executable, "-c", code], env=environment(), text=True) == "1\n"


def test_this_machine_is_reached_past_every_proxy() -> None:
    """In both spellings; what a user has named in either stays, each once."""
    found = past_proxies({"no_proxy": "a.example, localhost,c.example", "NO_PROXY": ".b.example,,a.example"})
    assert found["NO_PROXY"] == found["no_proxy"]
    hosts = found["NO_PROXY"].split(",")
    assert sorted(hosts) == [".b.example", "127.0.0.1", "::1", "a.example", "c.example", "localhost"]
    assert past_proxies({})["no_proxy"].split(",") == ["localhost", "127.0.0.1", "::1"]
