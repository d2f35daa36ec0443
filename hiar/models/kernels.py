"""Choice of torch's attention kernel: the fastest of those that are accurate, measured on the device itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hiar.models.attention import attend
from hiar.models.timing import timed
from hiar.noise import normals

KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
WARM, REPEATS = 2, 5
ROUNDING = 4.0  # largest error relative to exact attention, in units of the type's precision


def measure_kernels(
    queries: int, keys: int, heads: int, head_dim: int, batch: int, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Median seconds of every kernel that takes this shape and is accurate, the fastest first.

    queries, keys: tokens. Accurate: it differs from attention in double precision by rounding alone.
    """
    shapes = [(tokens, heads, head_dim) for tokens in (queries, keys, keys)]
    inputs = [normals("measuring", 0, range(batch), shape, step=i).to(device, dtype) for i, shape in enumerate(shapes)]
    head = [x[:1, :, :1].double() for x in inputs]  # one head, so that it fits in memory
    exact = attend(*head)
    seconds = {}
    for name in KERNELS:
        with sdpa_kernel(KERNELS[name]):
            try:
                out, seconds[name] = timed(lambda: attend(*inputs), WARM, REPEATS)
            except RuntimeError:  # torch has no such kernel for this device, type or shape
                continue
        error = (out[:1, :, :1].double() - exact).norm() / exact.norm()
        if not error <= ROUNDING * torch.finfo(dtype).eps:
            del seconds[name]
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the math kernel holds the whole attention matrix at once
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


def choose_kernel(
    queries: int, keys: int, heads: int, head_dim: int, batch: int, device: torch.device, dtype: torch.dtype
) -> str | None:
    """The fastest accurate kernel, for `using`. None on a CPU.

    torch has one fused kernel for a CPU, 1.5 to 2.8 times as fast as its other one on all shapes we tried, and what is
    computed there should not depend on timing.
    """
    if device.type == "cpu":
        return None
    return next(iter(measure_kernels(queries, keys, heads, head_dim, batch, device, dtype)), None)


@contextmanager
def using(kernel: str | None) -> Iterator[None]:
    """Use this kernel for attention, and others for shapes it does not take; None leaves the choice to torch."""
    if kernel is None:
        yield
        return
    others = [backend for name, backend in KERNELS.items() if name != kernel]
    with sdpa_kernel([KERNELS[kernel], *others], set_priority=True):
        yield
