"""Attention modes of the Wan transformer: bidirectional, block-causal on whole clips, and block by block with rings.

diffusers' transformer is used unchanged: `install` sets the processors of its attention layers, and replaces its
position table by a module that hands the plan of the current forward to every layer. Forwards on single blocks of a
rollout have plans of another kind, see `hiar.models.blockwise`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import (
    WanAttention,
    WanAttnProcessor,
    WanRotaryPosEmbed,
    WanTransformer3DModel,
)
from torch import Tensor, nn
from torch.nn import functional as F

from hiar.models.rings import KeysValues, RecordedRings, Rings
from hiar.models.rotary import rotate, rotations


@dataclass(frozen=True)
class Bidirectional:
    """Every frame sees every frame: the teacher, the scores of DMD, and the forward-KL regulariser."""


@dataclass(frozen=True)
class BlockCausal:
    """A whole clip (Eq. 4): blocks of ``block`` frames see themselves and up to ``window`` - 1 blocks before."""

    block: int
    window: int


@dataclass(frozen=True)
class TeacherForced:
    """A clean clip, followed in one sequence by a noisy clip of the same length.

    Both have the positions of one clip. Clean blocks see each other as in `BlockCausal`; a noisy block sees itself and
    the clean blocks before it, instead of the noisy ones.
    """

    block: int
    window: int


Attention = Bidirectional | BlockCausal | TeacherForced


class Look(NamedTuple):
    """A range of the sequence, and the ranges whose keys its queries see."""

    queries: slice
    keys: tuple[slice, ...]


EVERYTHING: tuple[Look, ...] = (Look(slice(None), (slice(None),)),)


@dataclass(frozen=True)
class SequencePlan:
    """Plan of the self-attention in a forward on whole clips; passed in place of Wan's rotary embedding."""

    turns: Tensor  # (1, tokens, 1, head_dim / 2), complex
    looks: tuple[Look, ...] = EVERYTHING  # their queries cover the whole sequence, in order


class Row(NamedTuple):
    """A block in a forward: it attends to ``cache``, itself included, and stays there until its slot is overwritten.

    leave: another cache that keeps it as context.
    """

    block: int
    cache: int
    leave: int | None = None


@dataclass(frozen=True)
class BlocksPlan:
    """Plan of the self-attention in a forward on single blocks; hidden states are (B * rows, tokens, dim)."""

    rings: Rings | RecordedRings
    rows: tuple[Row, ...]
    turns: Tensor  # (1, rows, tokens, 1, head_dim / 2), complex
    sink_shifts: tuple[Tensor | None, ...]  # one per row, see Rings.show


@dataclass(frozen=True)
class TextPlan:
    """Keys and values of prompts, passed in place of text embeddings.

    runs: (number of consecutive rows that share a prompt, its keys and values in each layer).
    """

    runs: tuple[tuple[int, list[KeysValues]], ...]


class Positions(nn.Module):
    """Replaces the transformer's position table, and returns the plan of the current forward."""

    def __init__(self, table: WanRotaryPosEmbed) -> None:
        super().__init__()
        self.table = table
        self.plan: SequencePlan | None = None
        self._turns: dict[tuple[Any, ...], Tensor] = {}

    def forward(self, hidden_states: Tensor) -> SequencePlan:
        # A direct forward of the transformer, without a plan, is diffusers' own: bidirectional.
        return self.plan or self.make_plan(Bidirectional(), hidden_states)

    def make_plan(self, attention: Attention, latents: Tensor) -> SequencePlan:
        """Plan of a forward on ``latents`` (B, C, F, H, W)."""
        frames, *size = (
            length // patch for length, patch in zip(latents.shape[2:], self.table.patch_size, strict=True)
        )
        clips = 2 if isinstance(attention, TeacherForced) else 1
        frames, tokens = frames // clips, size[0] * size[1]
        key = (frames, *size, latents.device)
        if key not in self._turns:
            self._turns[key] = rotations(self.table, 0, frames, *size).to(latents.device)
        looks = EVERYTHING
        if isinstance(attention, BlockCausal):
            looks = block_causal(frames, tokens, attention.block, attention.window)
        elif isinstance(attention, TeacherForced):
            looks = teacher_forced(frames, tokens, attention.block, attention.window)
        return SequencePlan(torch.cat([self._turns[key]] * clips, dim=1), looks)


class PlannedSelfAttention(WanAttnProcessor):
    """Wan's self-attention, following the plan of the forward."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: SequencePlan | BlocksPlan | None = None,
    ) -> Tensor:
        assert rotary_emb is not None
        plan = rotary_emb
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(hidden_states)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(hidden_states).unflatten(2, (attn.heads, -1))
        if isinstance(plan, BlocksPlan):
            out = self.attend(plan, query, key, value)
        else:
            out = self.look(plan, query, key, value)
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))

    def look(self, plan: SequencePlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of whole clips (B, tokens, heads, head_dim), one call per look.

        A mask instead would have L^2 entries, a gigabyte for Wan's clip of 32,760 tokens, and rule out the fastest
        kernels of GPUs.
        """
        query, key = rotate(query, plan.turns), rotate(key, plan.turns)
        out = [
            dispatch_attention_fn(
                query[:, look.queries],
                _stretches(key, look.keys),
                _stretches(value, look.keys),
                backend=self._attention_backend,
                parallel_config=self._parallel_config,
            )
            for look in plan.looks
        ]
        return out[0] if len(out) == 1 else torch.cat(out, dim=1)

    def attend(self, plan: BlocksPlan, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of blocks (B * rows, tokens, heads, head_dim) without masks, one call per row.

        Each row's ring shows exactly what the row may see.
        """
        query, key, value = (x.unflatten(0, (-1, len(plan.rows))) for x in (query, key, value))
        # Under autocast, norms return keys in full precision; attention reads them in the type of the values.
        query, key = rotate(query, plan.turns), rotate(key, plan.turns).type_as(value)
        out = []
        for i, (row, sink_shift) in enumerate(zip(plan.rows, plan.sink_shifts, strict=True)):
            own = (key[:, i], value[:, i])
            seen = plan.rings.show(row.cache, self.layer, row.block, *own, sink_shift)
            if row.leave is not None:
                plan.rings.put(row.leave, self.layer, row.block, *own)
            out.append(attend(query[:, i], *seen))
        return torch.stack(out, dim=1).flatten(0, 1)


class PlannedCrossAttention(WanAttnProcessor):
    """Wan's cross-attention; with a `TextPlan`, to keys and values computed once per prompt."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | TextPlan | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: None = None,
    ) -> Tensor:
        if not isinstance(encoder_hidden_states, TextPlan):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        out = self.attend(encoder_hidden_states, query)
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(hidden_states)))

    def attend(self, plan: TextPlan, query: Tensor) -> Tensor:
        """Attention of (B * rows, tokens, heads, head_dim) to the prompts, one call per run of rows that share one."""
        rows = sum(count for count, _ in plan.runs)
        query = query.unflatten(0, (-1, rows))
        out, first = [], 0
        for count, layers in plan.runs:
            part = query[:, first : first + count].flatten(1, 2)
            out.append(attend(part, *layers[self.layer]).unflatten(1, (count, -1)))
            first += count
        return (out[0] if len(out) == 1 else torch.cat(out, dim=1)).flatten(0, 1)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of (B, tokens, heads, head_dim) to all keys."""
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def install(transformer: WanTransformer3DModel) -> Positions:
    """Make ``transformer`` follow plans; its weights, config and saved form stay diffusers' own."""
    # Under autocast, the norms of queries and keys have full-precision weights; users need no warning of it.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    for layer, block in enumerate(transformer.blocks):
        block.attn1.set_processor(PlannedSelfAttention(layer))
        block.attn2.set_processor(PlannedCrossAttention(layer))
    transformer.rope = Positions(transformer.rope)
    return transformer.rope


def block_causal(frames: int, tokens: int, block: int, window: int) -> tuple[Look, ...]:
    """The looks of `BlockCausal`, over ``frames`` frames of ``tokens`` tokens; the last block may be shorter."""
    bounds = [tokens * frame for frame in (*range(0, frames, block), frames)]
    return tuple(
        Look(slice(bounds[n], bounds[n + 1]), (slice(bounds[max(0, n + 1 - window)], bounds[n + 1]),))
        for n in range(len(bounds) - 1)
    )


def teacher_forced(frames: int, tokens: int, block: int, window: int) -> tuple[Look, ...]:
    """The looks of `TeacherForced`: a clean clip of ``frames`` frames of ``tokens`` tokens, then a noisy one."""
    clean, behind = block_causal(frames, tokens, block, window), frames * tokens
    noisy = []
    for own, (seen,) in clean:
        itself, before = slice(own.start + behind, own.stop + behind), slice(seen.start, own.start)
        noisy.append(Look(itself, (before, itself) if before.start < before.stop else (itself,)))
    return (*clean, *noisy)


def _stretches(x: Tensor, parts: tuple[slice, ...]) -> Tensor:
    """The tokens of these ranges of (B, tokens, ...); a view if there is one range."""
    return x[:, parts[0]] if len(parts) == 1 else torch.cat([x[:, part] for part in parts], dim=1)
