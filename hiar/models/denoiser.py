"""The network of teacher, student and critic: diffusers' Wan transformer as a predictor of the clean latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from hiar import config
from hiar.models.attention import Attention, Bidirectional, install
from hiar.models.loading import cast_weights
from hiar.noise import seeded
from hiar.schedule import TIMESTEP_SCALE, expand, x0_from_velocity


class Denoiser(nn.Module):
    """A Wan transformer and the meaning of its output.

    prediction: "flow" if the transformer's output is the velocity (Wan), "x0" if it is the clean latent itself.
    coordinates: whether its input has two more channels than the latent, with the y and x of each latent pixel.
    """

    def __init__(self, transformer: WanTransformer3DModel, prediction: config.Prediction, coordinates: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.prediction = prediction
        self.coordinates = coordinates
        self.positions = [install(transformer)]  # in a list: it is a submodule of the transformer already

    @property
    def dtype(self) -> torch.dtype:
        """The type that it computes in, which latents and text should have."""
        return self.transformer.patch_embedding.weight.dtype

    def cast(self, dtype: torch.dtype) -> None:
        """See `cast_weights`."""
        cast_weights(self.transformer, dtype)

    @property
    def checkpointing(self) -> bool:
        """Whether layers keep nothing but their inputs for backward, and are recomputed then."""
        return bool(self.transformer.gradient_checkpointing)

    def checkpoint(self, on: bool = True) -> Self:
        """Switch activation checkpointing of the layers on or off. It costs one more forward, and changes no bit."""
        if on:
            self.transformer.enable_gradient_checkpointing(checkpoint)
        else:
            self.transformer.disable_gradient_checkpointing()
        return self

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.transformer.config.in_channels - 2 * self.coordinates

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor, attention: Attention) -> Tensor:
        """The network's x0 prediction for ``x``.

        x: (B, C, F, H, W) at noise levels ``sigma``, (B,) or one per frame (B, F); text: (B, words, text_dim).
        """
        positions = self.positions[0]
        positions.plan = positions.make_plan(attention, x)
        channels = torch.cat([x, coordinates(x)], dim=1) if self.coordinates else x
        try:
            (out,) = self.transformer(channels, self._timesteps(sigma, x), text, return_dict=False)
        finally:
            positions.plan = None
        out = out.type_as(x)  # under autocast, levels and latents stay in full precision
        return out if self.prediction == "x0" else x0_from_velocity(x, out, expand(sigma, x))

    def _timesteps(self, sigma: Tensor, x: Tensor) -> Tensor:
        """Wan's timesteps: (B,), or one per token (B, tokens) where there is a level per frame."""
        timesteps = (sigma * TIMESTEP_SCALE).to(x.device)
        if sigma.ndim == 1:
            return timesteps
        _, height, width = self.transformer.config.patch_size
        return timesteps.repeat_interleave((x.shape[3] // height) * (x.shape[4] // width), dim=1)


def checkpoint(layer: Callable[..., Any], *inputs: Any) -> Any:
    """Call ``layer``, which draws no random numbers, keeping nothing but its inputs for backward."""
    return recomputed(layer, *inputs, use_reentrant=False, preserve_rng_state=False)


def teacher_forced(ask: Callable[[Tensor, Tensor], Tensor], clean: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The x0 prediction for every block of ``x``, given the clean blocks before it instead of the noisy ones.

    ask(x, sigma): a forward under `TeacherForced`. clean, x: (B, C, F, H, W); sigma: (B, F), levels of ``x``.
    """
    levels = torch.cat([torch.zeros_like(sigma), sigma], dim=1)
    return ask(torch.cat([clean, x], dim=2), levels)[:, :, clean.shape[2] :]


def guided_x0(
    model: Denoiser,
    x: Tensor,
    sigma: Tensor,
    text: Tensor,
    no_text: Tensor,
    guidance: float,
    attention: Attention | None = None,
) -> Tensor:
    """Classifier-free guidance in x0 form, usual notation: uncond + guidance (cond - uncond); 1 is no guidance.

    x: (B, C, F, H, W), sigma: (B,) or (B, F), text and no_text: (B, words, dim). attention: bidirectional by default.
    """
    attention = attention or Bidirectional()
    if guidance == 1:
        return model(x, sigma, text, attention)
    both = model(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([text, no_text]), attention)
    cond, uncond = both.chunk(2)
    return uncond + guidance * (cond - uncond)


def coordinates(x: Tensor) -> Tensor:
    """Vertical and horizontal place of each latent pixel in [-1, 1], for latents (B, C, F, H, W): (B, 2, F, H, W)."""
    rows, columns = (torch.linspace(-1, 1, size, device=x.device, dtype=x.dtype) for size in x.shape[-2:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return grid[None, :, None].expand(x.shape[0], -1, x.shape[2], -1, -1)


def build_denoiser(model: config.Model, latent_channels: int, seed: int) -> Denoiser:
    """A randomly initialised denoiser; the weights depend on ``seed`` alone."""
    with seeded("denoiser weights", seed):
        transformer = WanTransformer3DModel(
            patch_size=(1, model.patch, model.patch),
            num_attention_heads=model.heads,
            attention_head_dim=model.head_dim,
            in_channels=latent_channels + 2 * model.coordinates,
            out_channels=latent_channels,
            text_dim=model.text_dim,
            freq_dim=model.freq_dim,
            ffn_dim=model.ffn,
            num_layers=model.layers,
        )
    return Denoiser(transformer, model.prediction, model.coordinates)
