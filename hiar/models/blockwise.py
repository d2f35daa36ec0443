"""Forwards on single blocks of a rollout, with their context in rings: the network calls of a walk.

What all passes of a rollout have in common is computed once: the embeddings of the noise levels, and a prompt's keys
and values in cross-attention. The layers are diffusers'; only the code around them is rewritten here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn
from torch.nn import functional as F

from hiar.models.attention import BlocksPlan, Row, TextPlan
from hiar.models.denoiser import Denoiser, checkpoint, coordinates
from hiar.models.rings import KeysValues, RecordedRings, Rings
from hiar.models.rotary import rotations
from hiar.models.sharded import inside
from hiar.schedule import TIMESTEP_SCALE, x0_from_velocity
from hiar.transfer import upload

NEAR = 64  # blocks whose rotations are kept: more than the diagonal of any grid


@dataclass(frozen=True)
class Conditioning:
    """A prompt and the levels of a rollout, embedded for the layers.

    sigmas: (levels,). time: (levels, dim) and modulation: (levels, 6, dim), the network's embeddings of the levels.
    text: keys and values (B, words, heads, head_dim) of every layer's cross-attention.
    """

    sigmas: Tensor
    time: Tensor
    modulation: Tensor
    text: list[KeysValues]


def condition(model: Denoiser, text: Tensor, sigmas: Tensor) -> Conditioning:
    """Embed a prompt (B, words, text_dim) and levels (levels,) once for all passes.

    Gradients pass through where they are enabled.
    """
    sigmas = sigmas.to(text.device)  # in full precision, whatever the text's: bf16 cannot represent 937.5
    time, modulation, words = inside(model, _embed, text, sigmas)
    keys_values = []
    for block in model.transformer.blocks:
        key, value = inside(block.attn2, _text_keys_values, words)
        keys_values.append(tuple(x.unflatten(2, (block.attn2.heads, -1)) for x in (key, value)))
    return Conditioning(sigmas, time, modulation.unflatten(1, (6, -1)), keys_values)


def _embed(model: Denoiser, text: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    time, modulation, words, _ = model.transformer.condition_embedder(TIMESTEP_SCALE * sigmas, text)
    return time, modulation, words


def _text_keys_values(attention: WanAttention, words: Tensor) -> KeysValues:
    """Keys and values (B, words, dim) of a layer's cross-attention."""
    return attention.norm_k(attention.to_k(words)), attention.to_v(words)


@dataclass
class Places:
    """Rotations of a rollout's blocks; those of the last ``NEAR`` blocks are cached."""

    model: Denoiser
    sizes: tuple[int, int, int]  # frames, rows and columns of tokens of a block
    device: torch.device
    _turns: dict[int, Tensor] = field(default_factory=dict)
    _shifts: dict[int, Tensor] = field(default_factory=dict)

    def of(self, block: int) -> Tensor:
        """The rotations of a block: (1, tokens, 1, head_dim / 2), complex."""
        if block not in self._turns:
            if len(self._turns) >= NEAR:
                self._turns.pop(next(iter(self._turns)))
            table = self.model.positions[0].table
            frames = self.sizes[0]
            self._turns[block] = upload(rotations(table, block * frames, *self.sizes), self.device)
        return self._turns[block]

    def shift(self, blocks: int) -> Tensor:
        """The rotation that moves keys by ``blocks`` blocks in time."""
        if blocks not in self._shifts:
            if len(self._shifts) >= NEAR:
                self._shifts.pop(next(iter(self._shifts)))
            table = self.model.positions[0].table
            self._shifts[blocks] = upload(rotations(table, blocks * self.sizes[0], 1, 1, 1), self.device)
        return self._shifts[blocks]


def forward_blocks(
    model: Denoiser,
    x: Tensor,
    rows: Sequence[Row],
    levels: Sequence[int],
    conditions: Sequence[Conditioning],
    rings: Rings | RecordedRings,
    places: Places,
) -> Tensor:
    """The network's x0 predictions for blocks ``x`` (B, rows, C, k, H, W).

    Every row has its position and caches (`Row`), its level (an index into the conditioning's sigmas) and its prompt.
    Rows that share a cache run in order: a later one sees the keys of an earlier one.
    Gradients need `RecordedRings`.
    """
    return inside(model, _forward_blocks, x, rows, levels, conditions, rings, places)


def _forward_blocks(
    model: Denoiser,
    x: Tensor,
    rows: Sequence[Row],
    levels: Sequence[int],
    conditions: Sequence[Conditioning],
    rings: Rings,
    places: Places,
) -> Tensor:
    transformer = model.transformer
    batch, count = x.shape[:2]
    latents = x.flatten(0, 1)
    channels = torch.cat([latents, coordinates(latents)], dim=1) if model.coordinates else latents
    hidden = _embed_patches(channels, transformer.patch_embedding)
    plan = BlocksPlan(
        rings,
        tuple(rows),
        torch.stack([places.of(row.block) for row in rows], dim=1),
        tuple(_sink_shift(rings, places, row.block) for row in rows),
    )
    runs = [list(run) for _, run in groupby(conditions, key=id)]
    text = TextPlan(tuple((len(run), run[0].text) for run in runs))
    time, modulation = (
        torch.stack([getattr(c, name)[level] for c, level in zip(conditions, levels, strict=True)])
        .expand(batch, count, *getattr(conditions[0], name).shape[1:])
        .flatten(0, 1)
        .contiguous()  # with one row it is not, and layers would be compiled again for that
        for name in ("time", "modulation")
    )
    for layer, block in enumerate(transformer.blocks):
        if model.checkpointing and isinstance(rings, RecordedRings) and torch.is_grad_enabled():
            hidden = _checkpointed(block, hidden, text, modulation, plan, rings, layer)
        else:
            hidden = block(hidden, text, modulation, plan)
    shift, scale = (transformer.scale_shift_table + time[:, None]).chunk(2, dim=1)
    hidden = (transformer.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
    out = _unpatchify(transformer.proj_out(hidden), transformer.config.patch_size, x).type_as(x)
    if model.prediction == "x0":
        return out
    sigmas = torch.stack([c.sigmas[level] for c, level in zip(conditions, levels, strict=True)])
    return x0_from_velocity(x, out, sigmas.view(1, count, 1, 1, 1, 1))


def _checkpointed(
    block: nn.Module,
    hidden: Tensor,
    text: TextPlan,
    modulation: Tensor,
    plan: BlocksPlan,
    rings: RecordedRings,
    layer: int,
) -> Tensor:
    """A layer whose activations are recomputed in backward: its context is an input, and what it writes a result.

    The recomputation reads the same context again; what it writes is discarded.
    """
    context = rings.of(layer)

    def forward(hidden: Tensor, modulation: Tensor) -> tuple[Tensor, RecordedRings]:
        left = context.of(layer)
        return block(hidden, text, modulation, replace(plan, rings=left)), left

    out: Tensor
    out, left = checkpoint(forward, hidden, modulation)
    rings.take(left)
    return out


def _sink_shift(rings: Rings | RecordedRings, places: Places, block: int) -> Tensor | None:
    """The rotation that keeps the sinks at the start of the window of ``block``; None where they keep their place."""
    if not rings.turn or block < rings.window:
        return None
    return places.shift(block - (rings.window - 1))


def _embed_patches(latents: Tensor, embedding: nn.Conv3d) -> Tensor:
    """Embed patches, which do not overlap, by a matrix product instead of a convolution: (N, tokens, dim).

    For the few frames of a block, a convolution's set-up takes longer than its work.
    """
    patches = latents
    for axis, size in enumerate(embedding.kernel_size, start=2):
        patches = patches.unflatten(axis * 2 - 2, (-1, size))  # split every axis into patches and positions inside them
    patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    return F.linear(patches, embedding.weight.flatten(1), embedding.bias)


def _unpatchify(tokens: Tensor, patch_size: tuple[int, int, int], like: Tensor) -> Tensor:
    """Tokens (B * rows, tokens, C * patch) -> latents (B, rows, C, k, H, W) of the size of ``like``."""
    batch, rows, _, *size = like.shape
    frames, height, width = (length // patch for length, patch in zip(size, patch_size, strict=True))
    patches = tokens.view(batch, rows, frames, height, width, *patch_size, -1)
    return patches.permute(0, 1, 8, 2, 5, 3, 6, 4, 7).reshape(batch, rows, -1, *size)
