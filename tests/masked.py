"""Rollouts without caches: each block is computed in one masked forward on the sequence of its contexts and itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hiar.models.attention import BlockCausal
from hiar.models.denoiser import Denoiser


def last_block(
    model: Denoiser, contexts: Sequence[Tensor], level: Tensor, x: Tensor, sigma: Tensor, text: Tensor, window: int
) -> Tensor:
    """x0 of the block ``x`` (B, C, k, H, W) at ``sigma`` behind its contexts at ``level``, each of the size of ``x``.

    No gradient flows through the contexts' keys and values.
    """
    frames, shown = x.shape[2], len(contexts) * x.shape[2]
    sequence = torch.cat([*contexts, x], dim=2)
    sigmas = torch.cat([level.expand(shown), sigma.expand(frames)]).expand(len(x), -1)
    _, height, width = model.transformer.config.patch_size
    with detached_context(model, shown * (x.shape[3] // height) * (x.shape[4] // width)):
        return model(sequence, sigmas, text, BlockCausal(frames, window))[:, :, -frames:]


class detached_context:
    """Within its `with` body, no gradient flows through the keys and values of the first ``tokens`` tokens.

    This matches a cache that is written without gradients.
    """

    def __init__(self, model: Denoiser, tokens: int) -> None:
        layers = [layer for block in model.transformer.blocks for layer in (block.attn1.norm_k, block.attn1.to_v)]

        def cut(_: object, __: object, out: Tensor) -> Tensor:
            return torch.cat([out[:, :tokens].detach(), out[:, tokens:]], dim=1)

        self.hooks = [layer.register_forward_hook(cut) for layer in layers]

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
