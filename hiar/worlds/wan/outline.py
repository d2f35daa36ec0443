"""Wan2.1's networks without their weights, from a base model's configurations or, by its name, the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn

from hiar.errors import UserError
from hiar.late import let_in
from hiar.worlds.interface import CODEC, TRANSFORMER, Part
from hiar.worlds.wan.codec import WanCodec
from hiar.worlds.wan.formats.configs import checked, read_config
from hiar.worlds.wan.formats.stored import read_json
from hiar.worlds.wan.references import FOLDERS

# Where the published text-to-video models differ from the class's defaults, by a part of their folders' names.
PUBLISHED: dict[str, dict[str, Any]] = {
    "1.3B": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14B": {},
}
UMT5_XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}


def outline(base: Path, part: Part) -> nn.Module:
    """A part of a base model, untrained, on torch's default device; on the meta device its weights take no memory.

    Raises UserError where neither the folder nor its name tells the configuration.
    """
    path = base / FOLDERS[part][0] / "config.json"
    if not path.exists() and (base.exists() or not any(size in base.name for size in PUBLISHED)):
        raise UserError(
            f"{path}: no such file; copy the base model there, or name a folder after a published one, "
            f"such as {' or '.join(f'Wan2.1-T2V-{size}' for size in PUBLISHED)}"
        )
    if part == TRANSFORMER:
        published = next((config for size, config in PUBLISHED.items() if size in base.name), {})
        return WanTransformer3DModel(**(read_config(path, {}) if path.exists() else checked(published, str(base))))
    said = read_json(path) if path.exists() else None
    if part == CODEC:
        return WanCodec(AutoencoderKLWan.from_config(said) if said else AutoencoderKLWan())
    let_in("transformers")
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**(said or UMT5_XXL | {"feed_forward_proj": "gated-gelu"})))
