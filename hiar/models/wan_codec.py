"""Wan's video decoder, block by block: diffusers' autoencoder, with a video's causal state kept from block to block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d
from torch import Tensor, nn


class WanDecoder(nn.Module):
    """The decoding half of a Wan autoencoder; latents are as its transformers make them, of about unit variance."""

    mean: Tensor  # (1, C, 1, 1, 1) of the autoencoder's own latents
    scale: Tensor  # their standard deviations

    def __init__(self, autoencoder: AutoencoderKLWan) -> None:
        super().__init__()
        self.enter, self.decoder = autoencoder.post_quant_conv, autoencoder.decoder
        self.convolutions = sum(isinstance(layer, WanCausalConv3d) for layer in self.decoder.modules())
        config = autoencoder.config
        self.register_buffer("mean", torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1))
        self.register_buffer("scale", torch.tensor(config.latents_std).view(1, -1, 1, 1, 1))

    def decoding(self) -> Callable[[Tensor], Tensor]:
        """A decoder of one batch of videos, to be called with block after block, for ever in constant memory.

        Latents (B, C, k, h, w) -> video (B, 3, F, 8 h, 8 w) in [-1, 1]. Each latent frame becomes four frames, but the
        first of a video one. What it gives is what diffusers' decoder gives of all blocks at once.
        """
        seen: list[Tensor | str | None] = [None] * self.convolutions  # the last two frames that each one saw
        first = True

        def decode(latents: Tensor) -> Tensor:
            nonlocal first
            hidden, frames = self.enter(latents * self.scale + self.mean), []
            for frame in hidden.split(1, dim=2):
                frames.append(self.decoder(frame, feat_cache=seen, feat_idx=[0], first_chunk=first))
                first = False
            return torch.cat(frames, dim=2).clamp_(-1, 1)

        return decode
