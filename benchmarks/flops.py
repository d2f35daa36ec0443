"""Floating-point operations and bytes of passes, from the model's configuration.

Counts matrix products - linear layers, convolutions, and attention to the blocks that a row really sees - at two
operations per multiply-add; norms, rotations and activations are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.presets import Preset
from hiar.grid import Grid, Pass


@dataclass(frozen=True)
class Sizes:
    """The sizes of a preset that the count needs; ``tokens``: of one block."""

    layers: int
    dim: int
    ffn: int
    tokens: int
    patch_in: int  # numbers in a token's input patch
    patch_out: int
    words: int
    text_dim: int
    freq_dim: int


def sizes(preset: Preset) -> Sizes:
    """The sizes of a preset's model and blocks."""
    model = preset.model
    channels, frames, height, width = preset.shape
    area = model.patch**2
    return Sizes(
        model.layers,
        model.heads * model.head_dim,
        model.ffn,
        frames * height * width // area,
        (channels + 2 * model.coordinates) * area,
        channels * area,
        model.text_length,
        model.text_dim,
        model.freq_dim,
    )


def row_flops(s: Sizes, seen: int) -> int:
    """Operations of one block in a forward call that attends to ``seen`` blocks, including itself."""
    linear = (
        4 * s.dim**2 + 2 * s.dim**2 + 2 * s.dim * s.ffn
    )  # self-attention, cross-attention's q and out, feed-forward
    attention = 2 * s.dim * (seen * s.tokens + s.words)  # scores and values
    return 2 * s.tokens * (s.layers * (linear + attention) + (s.patch_in + s.patch_out) * s.dim)


def pass_flops(s: Sizes, grid: Grid, step: Pass) -> int:
    """Operations of one forward call for one sample."""
    return sum(row_flops(s, len(grid.visible(cell.block)) + 1) for cell in step.write + step.denoise)


def condition_flops(s: Sizes, levels: int, batch: int) -> int:
    """Operations that a process does once: embedding the levels, and the prompts with their keys and values."""
    time = s.freq_dim * s.dim + s.dim**2 + 6 * s.dim**2
    text = s.text_dim * s.dim + s.dim**2 + s.layers * 2 * s.dim**2
    return 2 * (levels * time + batch * s.words * text)


def cache_bytes(s: Sizes, grid: Grid, caches: int, batch: int, itemsize: int) -> int:
    """Bytes of keys and values in ``caches`` caches with full windows."""
    return caches * batch * s.layers * 2 * grid.window * s.tokens * s.dim * itemsize
