"""fp8 linear layers, for GPUs that multiply fp8 numbers (Hopper and newer).

The effect of rounding is measured, not assumed: `with_fp8` returns by how much the network's output changes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiar.models.denoiser import Denoiser

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
MULTIPLE = 16  # GPUs take matrices whose sizes are multiples of it
ERROR = 0.05  # largest relative change of a pass's output; more is refused
CAPABILITY = (9, 0)  # of Hopper, the first GPUs with row-wise scaling


class Fp8Linear(nn.Module):
    """A linear layer with e4m3 weights and inputs, and one scale per output and per token."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = _rounded(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), of the type of ``x``."""
        rows, scale = _rounded(x.flatten(0, -2))
        by_row = F.ScalingType.RowWise
        out = F.scaled_mm(rows, self.weight.T, scale, by_row, self.scale.T, by_row, output_dtype=x.dtype)
        if self.bias is not None:
            out = out + self.bias
        return out.unflatten(0, x.shape[:-1])


def use_fp8(denoiser: Denoiser) -> None:
    """Replace the linear layers of all transformer layers, for good.

    Those outside of them (patches, levels, words, the last projection) are small, and matter more.
    """
    for layer in denoiser.transformer.blocks:
        for name, module in [*layer.named_modules()]:
            if isinstance(module, nn.Linear) and not (module.in_features % MULTIPLE or module.out_features % MULTIPLE):
                parent, _, own = name.rpartition(".")
                setattr(layer.get_submodule(parent), own, Fp8Linear(module))


def in_fp8(denoiser: Denoiser) -> bool:
    """Whether `use_fp8` has been applied."""
    return any(isinstance(module, Fp8Linear) for module in denoiser.modules())


@torch.no_grad()
def with_fp8(denoiser: Denoiser, prepare: Callable[[], Callable[[], Tensor]]) -> float:
    """Apply `use_fp8`, and return how much it changes the output of a pass of the denoiser; relative, in the norm.

    prepare: computes what the pass sees, and returns the pass.
    Raises RuntimeError or ValueError, torch's own, where fp8 numbers cannot be multiplied.
    """
    expected = prepare()().float()
    use_fp8(denoiser)
    return float((prepare()().float() - expected).norm() / expected.norm())


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, K) as e4m3 numbers, each row scaled to their range, and the scales (N, 1) that undo it."""
    largest = rows.detach().abs().amax(dim=1, keepdim=True).float()
    scale = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)  # a GPU may take smaller ones for 0
    return (rows.detach() / scale).to(FP8), scale
