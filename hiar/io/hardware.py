"""The name of the hardware that a run computes on, and the peak memory of a process."""

from __future__ import annotations

import os
import platform
import resource
from pathlib import Path
from typing import Literal

import torch


def hardware(device: Literal["auto", "cpu", "cuda"], processes: int | None = None) -> str:
    """The accelerators that ``runtime.device`` gives a run, for example "2x NVIDIA H200", otherwise the processor.

    processes: of the run, each with a GPU, on all its machines; None: all GPUs that are visible here.
    """
    if device != "cpu" and torch.cuda.is_available():
        return f"{processes or torch.cuda.device_count()}x {torch.cuda.get_device_name()}"
    return f"{_processor()}, {os.cpu_count()} cores"


def peak_memory_mb(device: Literal["auto", "cpu", "cuda"]) -> dict[str, int]:
    """The peak memory of this process, in MB, by name: the host's, and the GPU's if it has one.

    For a GPU there are two figures: memory allocated by tensors, and memory reserved by torch, which no other process
    could use.
    """
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KB on Linux
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
