"""Layers compiled by torch.compile, a layer at a time, where measuring says that it pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from hiar.models import fp8
from hiar.models.denoiser import Denoiser
from hiar.models.timing import now, timed

LOOK, MEASURE = (1, 3), (20, 10)  # calls that do not count and calls that do; compiled ones settle slowly
WORTH = 300.0  # seconds of layers as they are, below which a minute of compiling does not come back
GAIN = 1.05  # times faster than layers as they are; what gains less stays as it is
ERROR = 3.0  # of the type's precision, see `allowed`


class Compiled(NamedTuple):
    """What compiling gave: how many times faster, the output's relative difference, and seconds of the first call."""

    gain: float
    error: float
    first_call: float


@contextmanager
def compiled(denoiser: Denoiser, backend: str = "inductor") -> Iterator[None]:
    """Within the body the layers run compiled, all from the same graphs; what is compiled is kept on disk by torch.

    Attention itself stays as it is: it writes rings by the number of a block, and would be compiled for each anew.
    """
    layers = denoiser.transformer.blocks
    attentions = [attention.processor for layer in layers for attention in (layer.attn1, layer.attn2)]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend=backend)
    for attention in attentions:
        attention.attend = torch.compiler.disable(attention.attend)
    try:
        yield
    finally:
        for changed, name in [*((layer, "forward") for layer in layers), *((a, "attend") for a in attentions)]:
            delattr(changed, name)  # the class's own is there again


def where_it_pays(denoiser: Denoiser, forward: Callable[[], Tensor], calls: float = math.inf) -> Compiled | None:
    """What compiling gives where ``forward``, a call of the denoiser, is to be made so many times.

    None where that does not pay: for few calls, where it gains too little or differs by more than rounding does, and
    where torch cannot compile.
    """
    if timed(forward, *LOOK)[1] * calls < WORTH:
        return None
    try:
        found = measure_compiled(denoiser, forward)
    except RuntimeError:  # as all of torch's complaints are
        return None
    return found if found.error <= allowed(denoiser) and found.gain >= GAIN else None


def allowed(denoiser: Denoiser) -> float:
    """The difference, relative to the output, up to which compiled layers are right.

    Where they round to fp8, what differs in a last bit before may go to the next of its numbers, which are far apart.
    Two right ways to compute then differ by a share of what rounding to fp8 changes, of which so much is let pass.
    """
    return fp8.ERROR if fp8.in_fp8(denoiser) else ERROR * torch.finfo(denoiser.dtype).eps


@torch.no_grad()
def measure_compiled(denoiser: Denoiser, forward: Callable[[], Tensor]) -> Compiled:
    """Compile the layers for ``forward``, and compare. Raises RuntimeError where torch cannot."""
    expected, plain = timed(forward, *MEASURE)
    start = now(expected.device)
    with compiled(denoiser):
        first_call = now(forward().device) - start
        out, fast = timed(forward, *MEASURE)
    error = (out.float() - expected.float()).norm() / expected.float().norm()
    return Compiled(plain / fast, float(error), first_call)
