"""The original's autoencoder file, ``Wan2.1_VAE.pth``, as diffusers' AutoencoderKLWan."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from hiar.errors import UserError
from hiar.worlds.wan.formats.checking import SHOWN, require_exact
from hiar.worlds.wan.formats.sources import Found
from hiar.worlds.wan.formats.text_encoder import read_state


def open_autoencoder(path: Path) -> Found:
    """The autoencoder of an original file: its config.json, and its tensors by diffusers' names.

    Raises UserError when the file holds none, or an incomplete one.
    """
    try:
        tensors = convert_wan_vae_to_diffusers(read_state(path))
    except ValueError:  # for names that only resemble its own
        tensors = {}
    shapes = {name: one.shape for name, one in tensors.items()}
    width, latent = (shapes.get(name, ())[:1] for name in ("encoder.conv_in.weight", "post_quant_conv.weight"))
    if not width or latent != (16,):  # diffusers has means and deviations of 16 channels
        raise UserError(
            f"{path}: holds no autoencoder of Wan 2.1 (but {', '.join(list(shapes)[:SHOWN]) or 'other names'}); "
            "name Wan2.1_VAE.pth"
        )
    with torch.device("meta"):
        model = AutoencoderKLWan(base_dim=width[0], z_dim=latent[0])
    require_exact(shapes, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, str(path))
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    head = {"_class_name": "AutoencoderKLWan", "_diffusers_version": diffusers.__version__}
    return Found("wan", head | config, tensors)
