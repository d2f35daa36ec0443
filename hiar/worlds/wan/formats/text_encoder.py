"""The original's text encoder file, ``models_t5_umt5-xxl-enc-bf16.pth``, as the UMT5EncoderModel of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hiar.errors import UserError
from hiar.late import let_in
from hiar.worlds.wan.formats.checking import SHOWN, require_exact
from hiar.worlds.wan.formats.configs import Shapes
from hiar.worlds.wan.formats.names import unwrap
from hiar.worlds.wan.formats.sources import Found
from hiar.worlds.wan.formats.stored import Stored, read_file, stored_state

STEM = "model"  # of the files of transformers

_OUTSIDE = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}
_IN_BLOCK = {
    **{f"attn.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_NAME = re.compile(r"(?:blocks\.(\d+)\.)?(.+)\.weight")


def open_text_encoder(path: Path) -> Found:
    """The text encoder of an original file: its config.json, and the tensors that transformers saves.

    The tied copy of the word embeddings is not among them: from_pretrained makes it. Raises UserError when the file
    holds no such encoder, or an incomplete one.
    """
    tensors = {to_transformers(name) or name: one for name, one in read_state(path).items()}
    shapes = {name: one.shape for name, one in tensors.items()}
    config, wanted = _model(shapes, path)
    require_exact(shapes, wanted, str(path))
    return Found("wan", config, tensors)


def to_transformers(name: str) -> str | None:
    """The name in transformers of a tensor of the original text encoder; None for a name that it does not have."""
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    block, module = parts.groups()
    renamed = _OUTSIDE.get(module) if block is None else _IN_BLOCK.get(module)
    place = "" if block is None else f"encoder.block.{block}."
    return None if renamed is None else f"{place}{renamed}.weight"


def read_state(path: Path) -> dict[str, Stored]:
    """The tensors of a file that holds one state dict, by their names without wrappers.

    Raises UserError as `read_file` does, and when it holds anything else.
    """
    held = read_file(path)
    if not isinstance(held, Mapping) or not held:
        raise UserError(f"{path}: holds {type(held).__name__}, not a state dict; name the file of the original Wan")
    whole = all(isinstance(one, Stored) for one in held.values())
    state = dict(held) if whole else stored_state(held, str(path))
    return {bare: state[name] for bare, name in unwrap(state, str(path)).items()}


def _model(shapes: Shapes, path: Path) -> tuple[dict[str, Any], Shapes]:
    """The configuration that shapes determine, and its model's shapes. Raises UserError when there is none."""
    let_in("transformers")  # slow to import, and needed for nothing else
    from transformers import UMT5Config, UMT5EncoderModel

    first = "encoder.block.0.layer."
    try:
        vocabulary, width = shapes["shared.weight"]
        buckets, heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"]
        inner, _ = shapes[f"{first}0.SelfAttention.q.weight"]
        hidden, _ = shapes[f"{first}1.DenseReluDense.wi_0.weight"]
        config = UMT5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=inner // heads,
            d_ff=hidden,
            num_layers=len({name.split(".")[2] for name in shapes if name.startswith("encoder.block.")}),
            num_heads=heads,
            relative_attention_num_buckets=buckets,
            feed_forward_proj="gated-gelu",
        )
    except (KeyError, ValueError, ZeroDivisionError):
        raise UserError(
            f"{path}: holds no UMT5 encoder of the original Wan (but {', '.join(list(shapes)[:SHOWN])}); "
            "name models_t5_umt5-xxl-enc-bf16.pth"
        ) from None
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    tied = "encoder.embed_tokens.weight"
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != tied}
    return config.to_dict() | {"architectures": [UMT5EncoderModel.__name__]}, wanted
