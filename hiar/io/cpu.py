"""CPU settings for processes that compute (threads, malloc), and whether it has bf16 arithmetic."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

# Parameters of glibc's mallopt, and the largest M_MMAP_THRESHOLD it accepts: larger blocks are always mapped.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 32 * 1024 * 1024


def settle_cpu(threads: int | None = None) -> None:
    """Set torch's number of threads; by default one, unless OMP_NUM_THREADS is set. Also has malloc keep freed memory.

    On a block's few tokens threads gain nothing, and on a busy machine they wait for each other longer than they work.
    """
    _keep_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def multiplies_bf16() -> bool:
    """Whether this processor has a kernel for bf16 matrix products, which otherwise take many times as long as fp32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _keep_memory() -> None:
    """Have malloc keep freed memory, as every step allocates it again.

    By default it returns some to the system, depending on what was freed before, and each page that is needed again
    costs a page fault: a million in three minutes of training, a twentieth of the time. If any of malloc's own
    variables (MALLOC_...) is set, nothing is changed.
    """
    if platform.libc_ver()[0] == "glibc" and not any(name.startswith("MALLOC_") for name in os.environ):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
        libc.mallopt(M_TRIM_THRESHOLD, 4 * LARGEST)
