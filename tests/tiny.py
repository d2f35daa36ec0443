"""Small networks that all tests share."""

from __future__ import annotations

import gc

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from hiar.models.denoiser import Denoiser

torch.set_num_threads(1)


def tiny_denoiser(prediction: str = "flow", coordinates: bool = False, seed: int = 0) -> Denoiser:
    """A Wan transformer of two layers with random weights; latents of 3 channels and 4x4 have four tokens a frame."""
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=3 + 2 * coordinates,
        out_channels=3,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(transformer, prediction, coordinates)  # type: ignore[arg-type]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def live_tensor_bytes() -> int:
    """Bytes of the storages of all tensors that are still alive."""
    gc.collect()
    return sum(o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) is torch.Tensor)
