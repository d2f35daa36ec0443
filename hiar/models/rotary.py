"""Wan's rotary position embedding: by frame, row and column of a token, as unit complex numbers per channel pair."""

from __future__ import annotations

from functools import lru_cache

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor


def rotations(table: WanRotaryPosEmbed, first: int, frames: int, rows: int, columns: int) -> Tensor:
    """Rotations of the tokens of ``frames`` frames from frame ``first`` on: (1, tokens, 1, head_dim / 2), complex.

    They equal diffusers', but do not end with a table: any frame number will do, also a negative one.
    """
    time, height, width = (
        _axis(table.t_dim, first, frames),
        _axis(table.h_dim, 0, rows),
        _axis(table.w_dim, 0, columns),
    )
    size = (frames, rows, columns, -1)
    parts = (time[:, None, None].expand(size), height[None, :, None].expand(size), width[None, None].expand(size))
    return torch.cat(parts, dim=-1).reshape(1, frames * rows * columns, 1, -1).to(torch.complex64)


@lru_cache(maxsize=64)
def _axis(dim: int, first: int, count: int) -> Tensor:
    """Rotations of ``count`` positions from ``first`` on: (count, dim / 2). Rows and columns always start at 0."""
    return get_1d_rotary_pos_embed(dim, torch.arange(first, first + count), freqs_dtype=torch.float64)


def forget() -> None:
    """Clear the cache of rotations."""
    _axis.cache_clear()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs: x (B, tokens, heads, head_dim), turns (B or 1, tokens, 1, head_dim / 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)
