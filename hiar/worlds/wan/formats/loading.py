"""Loading the transformer of a checkpoint folder, each tensor checked and in its type."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformer3DModel

from hiar.io.free import require_memory
from hiar.models.finite import require_finite
from hiar.worlds.wan.formats.sources import open_source


def load_transformer(folder: Path, dtype: torch.dtype | None = None) -> WanTransformer3DModel:
    """The transformer of a folder (of diffusers or the original, in one file or several), in evaluation mode.

    dtype: of its weights, which are copied into memory once. None leaves each as stored, in the mapped file: nobody
    may write to it. What Wan keeps in full precision is float32 either way. Raises UserError when the folder is
    incomplete, memory is too small for it, or a weight is not finite.
    """
    found = open_source(folder)
    with torch.device("meta"):
        model = WanTransformer3DModel(**found.config)
    config = model.config
    # RoPE's tables are computed, not loaded, and on the meta device they could not be
    model.rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    types = {
        name: torch.float32 if kept & set(name.split(".")) else dtype or one.dtype
        for name, one in found.tensors.items()
    }
    mine = dtype is not None  # a copy, or training would write into the mapped file's pages
    copied = [name for name, one in found.tensors.items() if mine or types[name] != one.dtype]
    require_memory(str(folder), sum(math.prod(found.tensors[name].shape) * types[name].itemsize for name in copied))
    state = {}
    for name, one in found.tensors.items():
        state[name] = one.load().to(types[name], copy=mine)
        require_finite({name: state[name]}, str(folder))
    model.load_state_dict(state, assign=True)
    return model.eval()
