"""Names of the transformer's tensors: as the original implementation has them, as diffusers has them, and wrapped."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hiar.errors import UserError

# Modules and parameters, original -> diffusers. The trap: the norm before cross-attention, the only one with weights,
# is the original's third and diffusers' second.
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_IN_BLOCK = {
    **{
        f"{theirs}.{module}": f"{ours}.{renamed}"
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for module, renamed in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}

# What wraps a module: the training loops' own classes, DDP, FSDP, activation checkpointing, torch.compile, and the
# single files of other programs. No module of Wan has such a name, so they are dropped anywhere in a name.
_WRAPPERS = frozenset(
    {"model", "module", "diffusion_model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
)
_PARTS = re.compile(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?")


def strip_prefixes(name: str) -> str:
    """A tensor's name without those of wrappers, which may come in any order and number, before it and within."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def to_diffusers(name: str) -> str | None:
    """The name in diffusers of a tensor of the original transformer; None for a name that it does not have."""
    return _translate(name, _OUTSIDE, _IN_BLOCK)


def to_original(name: str) -> str | None:
    """The original name of a tensor of diffusers' transformer; None for a name that it does not have."""
    return _translate(name, _invert(_OUTSIDE), _invert(_IN_BLOCK))


def is_original(names: Iterable[str]) -> bool:
    """Whether names without wrappers are the original's: at least one is, and is not also diffusers'."""
    return any(renamed not in (None, name) for name in names for renamed in [to_diffusers(name)])


def unwrap(names: Iterable[str], where: str) -> dict[str, str]:
    """The names as found, by the same names without wrappers.

    Raises UserError, naming ``where``, when two belong to the same tensor.
    """
    found: dict[str, str] = {}
    for name in names:
        bare = strip_prefixes(name)
        if bare in found:
            raise UserError(
                f"{where}: holds {bare} twice, as {found[bare]} and as {name}; save it again with one of them"
            )
        found[bare] = name
    return found


def _translate(name: str, outside: dict[str, str], in_block: dict[str, str]) -> str | None:
    parts = _PARTS.fullmatch(name)
    if parts is None:
        return None
    block, module, parameter = (part or "" for part in parts.groups())
    renamed = (in_block if block else outside).get(module)
    # a module has weight or bias, a bare parameter has neither
    if renamed is None or bool(parameter) == module.endswith("modulation") | module.endswith("table"):
        return None
    return f"{block}{renamed}{parameter}"


def _invert(table: dict[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in table.items()}
