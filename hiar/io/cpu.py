"""The processor as a process that computes wants it: its threads, and its memory; what arithmetic it has."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

# Parameters of glibc's mallopt, and the most that it takes for the first: larger blocks are the system's in any case.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 * 1024 * 1024


def settle_cpu(threads: int | None = None) -> None:
    """Set torch's threads; without a number of them one, unless OMP_NUM_THREADS asks for more.

    On a block's few tokens threads gain nothing, and on a busy machine they wait for each other longer than they work.
    """
    _keep_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def multiplies_bf16() -> bool:
    """Whether this processor has a kernel for products of bf16 matrices, which else take many times fp32's time."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _keep_memory() -> None:
    """Have malloc keep what is given back, as every step asks for it again.

    Left to itself it gives some back to the system, depending on what has been freed before, and each page of it that
    is needed again is a fault: a million in three minutes of training, a twentieth of the time. Variables of malloc's
    own (MALLOC_...) say otherwise.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, 4 * LARGEST)
