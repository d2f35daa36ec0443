"""What a run computes on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

import torch


def hardware(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The accelerators that ``runtime.device`` gives a run, for example "2x NVIDIA H200", else the processor."""
    if device != "cpu" and torch.cuda.is_available():
        return f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}"
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
