"""Layers compiled by torch.compile, one at a time, where measurement shows that it pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiar.models import fp8
from hiar.models.denoiser import Denoiser
from hiar.models.timing import now, timed

LOOK, MEASURE = (1, 3), (20, 10)  # warm-up calls and counted ones; compiled layers settle slowly
ENOUGH = 20.0  # seconds of calls that are enough: on a GPU full of videos, a single one takes seconds
WORTH = 300.0  # seconds in eager layers below which a minute of compiling does not pay off
GAIN = 1.05  # least speed-up over eager layers; with less they stay eager
ERROR = 3.0  # in units of the type's precision, see `allowed`
# For each fp8 product inductor would otherwise compile and time a hundred kernels of its own: minutes.
OPTIONS: dict[str, Any] = {"max_autotune_gemm_backends": "ATEN"}


class Compiled(NamedTuple):
    """Result of compiling: the speed-up, the output's relative difference, and seconds of the first call."""

    gain: float
    error: float
    first_call: float


@contextmanager
def compiled(denoiser: Denoiser, backend: str = "inductor") -> Iterator[None]:
    """Within the body the layers run compiled, all from the same graphs; torch caches what it compiles on disk.

    Attention is not compiled: it writes to rings by block number, and would be compiled again for each block.
    """
    layers = denoiser.transformer.blocks
    options = OPTIONS if backend == "inductor" else None
    attentions = [attention.processor for layer in layers for attention in (layer.attn1, layer.attn2)]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend=backend, options=options)
    for attention in attentions:
        attention.attend = torch.compiler.disable(attention.attend)
    try:
        yield
    finally:
        for changed, name in [*((layer, "forward") for layer in layers), *((a, "attend") for a in attentions)]:
            delattr(changed, name)  # uncovers the class's own


def where_it_pays(denoiser: Denoiser, forward: Callable[[], Tensor], calls: float = math.inf) -> Compiled | None:
    """Measure what compiling gains for ``forward``, a call of the denoiser that will be made ``calls`` times.

    None where it does not pay: for few calls, where it gains too little or differs by more than rounding does, and
    where torch cannot compile.
    """
    if timed(forward, *LOOK)[1] * calls < WORTH:
        return None
    try:
        found = measure_compiled(denoiser, forward)
    except RuntimeError:  # the base class of torch's errors
        return None
    return found if found.error <= allowed(denoiser) and found.gain >= GAIN else None


def allowed(denoiser: Denoiser) -> float:
    """The relative difference of the output up to which compiled layers count as correct.

    With fp8, a difference in the last bit before rounding may lead to the next fp8 number, which is far away. Two
    correct computations then differ by a fraction of what rounding to fp8 itself changes, for which ``fp8.ERROR`` is
    the bound.
    """
    return fp8.ERROR if fp8.in_fp8(denoiser) else ERROR * torch.finfo(denoiser.dtype).eps


@torch.no_grad()
def measure_compiled(denoiser: Denoiser, forward: Callable[[], Tensor]) -> Compiled:
    """Compile the layers for ``forward``, and compare with eager ones. Raises RuntimeError if torch cannot."""
    expected, plain = timed(forward, *MEASURE, ENOUGH)
    start = now(expected.device)
    with compiled(denoiser):
        first_call = now(forward().device) - start
        out, fast = timed(forward, *MEASURE, ENOUGH)
    error = (out.float() - expected.float()).norm() / expected.float().norm()
    return Compiled(plain / fast, float(error), first_call)
