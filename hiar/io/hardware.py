"""What a run computes on, in words, and how much of its memory it has had."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Literal

import torch


def hardware(device: Literal["auto", "cpu", "cuda"]) -> str:
    """The accelerators that ``runtime.device`` gives a run, for example "2x NVIDIA H200", else the processor."""
    if device != "cpu" and torch.cuda.is_available():
        return f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}"
    return f"{_processor()}, {os.cpu_count()} cores"


def peak_memory_mb(device: Literal["auto", "cpu", "cuda"]) -> dict[str, int]:
    """The most memory that this process has had, in MB, by what it is of: the host's, and its GPU's where it has one.

    A GPU's is told as its tensors took it, and as torch kept it for them, which is what others there had to do without.
    """
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # of what the system counts in
    peak = {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)}
    if device != "cpu" and torch.cuda.is_available():
        taken, kept = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        peak |= {"peak_gpu_memory_mb": round(taken / 2**20), "peak_gpu_memory_kept_mb": round(kept / 2**20)}
    return peak


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
