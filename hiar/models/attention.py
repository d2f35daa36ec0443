"""Attention modes of the Wan transformer: bidirectional, block-causal under a mask, and block by block with a cache.

diffusers' transformer is used as it is: `install` gives its self-attention layers a processor, and puts a module in
the place of its position table that hands every layer the plan of the current forward. Keys are cached before their
rotation, so that positions can be relative to the window: a rollout then never runs out of positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanRotaryPosEmbed,
    WanTransformer3DModel,
)
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (1, tokens, 1, head_dim)
KeysValues = tuple[Tensor, Tensor]  # each (B, tokens, heads, head_dim); keys before rotation


@dataclass(frozen=True)
class Bidirectional:
    """Every frame sees every frame: the teacher, the scores of DMD, and the forward-KL regulariser."""


@dataclass(frozen=True)
class BlockCausal:
    """A whole clip under a mask (Eq. 4).

    Blocks of ``block`` frames see themselves and up to ``window`` - 1 blocks before.
    """

    block: int
    window: int


@dataclass
class KVCache:
    """Keys and values of context blocks: ``blocks[n][layer]``, in the order the blocks were written."""

    blocks: dict[int, list[KeysValues]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Cached tokens, of one layer."""
        return sum(layers[0][0].shape[1] for layers in self.blocks.values())

    def keep(self, visible: list[int]) -> None:
        """Forget every block but the ``visible`` ones."""
        self.blocks = {block: layers for block, layers in self.blocks.items() if block in visible}


@dataclass(frozen=True)
class Cached:
    """One block that sees the blocks of ``cache`` and itself; with ``write``, it joins the cache as block ``write``."""

    cache: KVCache
    write: int | None = None


Attention = Bidirectional | BlockCausal | Cached


@dataclass(frozen=True)
class Plan:
    """What the self-attention of one forward needs; travels to the layers in the place of Wan's rotary embedding."""

    rotation: Rotation  # of the cached tokens, then of the forward's own
    mask: Tensor | None = None  # (tokens, tokens), true where a query may look
    context: list[list[KeysValues]] = field(default_factory=list)  # cached blocks, a list of layers each
    written: list[KeysValues] | None = None  # filled in by the layers, in their order


class Positions(nn.Module):
    """Stands in the transformer where its position table was, and returns the plan of the forward under way."""

    def __init__(self, table: WanRotaryPosEmbed) -> None:
        super().__init__()
        self.table = table
        self.plan: Plan | None = None
        self._rotations: dict[tuple[Any, ...], Rotation] = {}

    def forward(self, hidden_states: Tensor) -> Plan:
        # A bare forward of the transformer is diffusers' own: bidirectional.
        return self.plan or Plan(self.table(hidden_states))

    def make_plan(self, attention: Attention, latents: Tensor) -> Plan:
        """Plan of a forward on ``latents`` (B, C, F, H, W)."""
        frames, tokens = self._tokens(latents)
        match attention:
            case Bidirectional():
                return Plan(self._rotation(frames, latents))
            case BlockCausal(block, window):
                mask = block_causal_mask(frames, tokens, block, window).to(latents.device)
                return Plan(self._rotation(frames, latents), mask=mask)
            case Cached(cache, write):
                rotation = self._rotation(cache.tokens // tokens + frames, latents)
                return Plan(rotation, None, list(cache.blocks.values()), None if write is None else [])

    def _tokens(self, latents: Tensor) -> tuple[int, int]:
        """Frames of tokens, and tokens a frame."""
        frames, height, width = (
            size // patch for size, patch in zip(latents.shape[2:], self.table.patch_size, strict=True)
        )
        return frames, height * width

    def _rotation(self, frames: int, latents: Tensor) -> Rotation:
        """Rotations of ``frames`` frames of the size of ``latents``, computed once."""
        key = (frames, *latents.shape[3:], latents.device)
        if key not in self._rotations:
            shape = (1, 1, frames * self.table.patch_size[0], *latents.shape[3:])
            self._rotations[key] = self.table(torch.empty(shape, device="meta"))
        return self._rotations[key]


class PlannedSelfAttention(WanAttnProcessor):
    """Wan's attention, with the self-attention following a `Plan`; cross-attention is left to diffusers."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Plan | None = None,
    ) -> Tensor:
        if rotary_emb is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)
        plan = rotary_emb
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        if plan.written is not None:
            plan.written.append((key, value))
        if plan.context:
            cached = [layers[self.layer] for layers in plan.context]
            key = torch.cat([*(keys for keys, _ in cached), key], dim=1)
            value = torch.cat([*(values for _, values in cached), value], dim=1)
        cos, sin = plan.rotation
        query = rotate(query, (cos[:, -query.shape[1] :], sin[:, -query.shape[1] :]))
        key = rotate(key, (cos, sin))
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=plan.mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        out = out.flatten(2, 3).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))


def install(transformer: WanTransformer3DModel) -> Positions:
    """Make ``transformer`` follow plans; its weights, config and saved form stay diffusers' own."""
    for layer, block in enumerate(transformer.blocks):
        block.attn1.set_processor(PlannedSelfAttention(layer))
    transformer.rope = Positions(transformer.rope)
    return transformer.rope


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding in Wan's interleaved layout: x (B, tokens, heads, head_dim)."""
    cos, sin = rotation[0][..., 0::2], rotation[1][..., 1::2]
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)


def block_causal_mask(frames: int, tokens: int, block: int, window: int) -> Tensor:
    """Mask of Eq. 4 over ``frames`` frames of ``tokens`` tokens.

    (L, L), L = frames * tokens; true where the row's token may see the column's.
    """
    index = torch.arange(frames).repeat_interleave(tokens) // block
    age = index[:, None] - index[None, :]
    return (age >= 0) & (age < window)
