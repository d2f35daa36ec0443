"""The transformer's configuration: from diffusers' config.json, the original's, or the shapes of its tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hiar.config.section import Positive, Size
from hiar.errors import UserError
from hiar.parameters import explain
from hiar.worlds.wan.formats.stored import read_json

Config = dict[str, Any]  # the arguments of WanTransformer3DModel, all of them
Shapes = Mapping[str, tuple[int, ...]]  # by diffusers' names

HEAD_DIM = 128  # of every published Wan; shapes do not show it
TEXT_LENGTH = 512  # tokens that the original pads prompts to
_Patch = tuple[Size, Size, Size]
_ORIGINAL = {  # fields of the original's config.json, by diffusers' names
    "num_attention_heads": "num_heads",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "eps": "eps",
}


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


Kind = TypeVar("Kind", bound=_Checked)


class _Diffusers(_Checked):
    """A text-to-video transformer of Wan 2.1's architecture; other configurations are other models."""

    patch_size: _Patch
    num_attention_heads: Size
    attention_head_dim: Annotated[Size, Field(ge=6, multiple_of=2)]  # RoPE needs a pair of channels for each axis
    in_channels: Size
    out_channels: Size
    text_dim: Size
    freq_dim: Size
    ffn_dim: Size
    num_layers: Size
    cross_attn_norm: Literal[True]
    qk_norm: Literal["rms_norm_across_heads"]
    eps: Positive
    image_dim: None
    added_kv_proj_dim: None
    rope_max_seq_len: Size
    pos_embed_seq_len: None


class _Original(_Checked):
    """The fields of the original's config.json, which leaves patch size and text width to the shapes."""

    model_type: Literal["t2v"] = "t2v"
    dim: Size
    num_heads: Size
    in_dim: Size
    out_dim: Size
    freq_dim: Size
    ffn_dim: Size
    num_layers: Size
    eps: Positive


def read_config(path: Path, shapes: Shapes) -> Config:
    """The configuration in a config.json, diffusers' or the original's; ``shapes`` give what the latter omits.

    Raises UserError naming the field when it is not valid, or not that of a text-to-video transformer.
    """
    said = read_json(path)
    if not is_original_config(said):
        kind = said.get("_class_name")
        if kind != WanTransformer3DModel.__name__:
            raise UserError(
                f"{path}: _class_name = {kind!r}: should be {WanTransformer3DModel.__name__}, or WanModel; "
                "name a transformer of Wan"
            )
        return checked(said, str(path))
    original = _validated(_Original, said, str(path))
    if original.dim % original.num_heads:
        raise UserError(f"{path}: num_heads = {original.num_heads}: should divide dim = {original.dim}; fix it")
    config = {ours: getattr(original, theirs) for ours, theirs in _ORIGINAL.items()}
    config["attention_head_dim"] = original.dim // original.num_heads
    seen = sizes(shapes)
    return checked(config | {name: seen[name] for name in ("patch_size", "text_dim") if name in seen}, str(path))


def is_original_config(said: Mapping[str, Any]) -> bool:
    """Whether a config.json is in the original's terms."""
    return "dim" in said


def original_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The original's config.json for a transformer."""
    return {
        "_class_name": "WanModel",
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "model_type": "t2v",
        "text_len": TEXT_LENGTH,
        **{theirs: config[ours] for ours, theirs in _ORIGINAL.items()},
    }


def checked(said: Mapping[str, Any], where: str) -> Config:
    """A configuration as the arguments of WanTransformer3DModel, with its defaults for missing fields.

    Raises UserError naming ``where`` and the field.
    """
    parameters = inspect.signature(WanTransformer3DModel.__init__).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    known = {name: said.get(name, default) for name, default in defaults.items()}
    if isinstance(known["patch_size"], list):  # as JSON has it
        known["patch_size"] = tuple(known["patch_size"])
    return _validated(_Diffusers, known, where).model_dump()


def sizes(shapes: Shapes) -> Config:
    """The fields of a configuration that shapes determine, and ``dim``, the width.

    Those whose tensors are missing are left out.
    """

    def along(name: str, axis: int, rank: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) == rank else None

    patch = shapes.get("patch_embedding.weight", ())[2:]
    out = along("proj_out.weight", 0, 2)
    seen: dict[str, Any] = {
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        "dim": along("patch_embedding.weight", 0, 5),
        "in_channels": along("patch_embedding.weight", 1, 5),
        "patch_size": patch if len(patch) == 3 else None,
        "out_channels": out // math.prod(patch) if out and len(patch) == 3 and all(patch) else None,
        "text_dim": along("condition_embedder.text_embedder.linear_1.weight", 1, 2),
        "freq_dim": along("condition_embedder.time_embedder.linear_1.weight", 1, 2),
        "ffn_dim": along("blocks.0.ffn.net.0.proj.weight", 0, 2),
    }
    return {name: value for name, value in seen.items() if value is not None}


def settle(shapes: Shapes, where: str, said: Config | None, base: Config | None) -> Config:
    """The configuration of the tensors of ``where``: from config.json (``said``), else the base's, else by the shapes.

    Raises UserError naming the field in which these disagree, or that none of them gives.
    """
    seen = sizes(shapes)
    for other, who, remedy in (
        (said, "its config.json says", "its files are not of one checkpoint, copy it again"),
        (base, "the base has", "name a checkpoint of the base's size, or another base"),
    ):
        if other is not None:
            wide = {"dim": other["num_attention_heads"] * other["attention_head_dim"]}
            _agree(seen, {**other, **wide}, f"{where}: %s = %s: {who} %s; {remedy}")
    if said is not None and base is not None:
        _agree(said, base, f"{where}: %s = %s: the base has %s; name a checkpoint of the base's kind, or another base")
    if known := said or base:
        return known
    wanted = {"num_layers", "dim", "in_channels", "out_channels", "patch_size", "text_dim", "freq_dim", "ffn_dim"}
    if unknown := sorted(wanted - seen.keys()):
        raise UserError(f"{where}: lacks the tensors that show {', '.join(unknown)}; copy or download it again")
    if seen["dim"] % HEAD_DIM:
        raise UserError(f"{where}: dim = {seen['dim']}: is not a multiple of Wan's {HEAD_DIM} a head; name its --base")
    heads = {"num_attention_heads": seen["dim"] // HEAD_DIM, "attention_head_dim": HEAD_DIM}
    return checked(seen | heads, where)


def _agree(one: Mapping[str, Any], other: Mapping[str, Any], line: str) -> None:
    """Raise UserError for the first field that differs, its name and both values filled into ``line``."""
    for name, value in one.items():
        if value != other[name]:
            raise UserError(line % (name, value, other[name]))


def _validated(kind: type[Kind], said: Mapping[str, Any], where: str) -> Kind:
    try:
        return kind.model_validate(dict(said))
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, kind)}; name a text-to-video transformer of Wan 2.1") from None
