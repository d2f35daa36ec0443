"""An experiment's networks on the meta device, without memory, and the bytes of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn

from hiar import config
from hiar.config import Params
from hiar.memory.counting import network_bytes, storage_bytes
from hiar.memory.steps import Config, Sizes, make_network
from hiar.models.denoiser import Denoiser, build_denoiser
from hiar.training.clips import begins_apart
from hiar.training.muon import Muon
from hiar.training.role import Role, make_role
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, Codec, World, open_world

STATES = {torch.optim.AdamW: 2, Muon: 1}  # tensors of a parameter's size
OPTIMISER = "optimiser"


@dataclass(frozen=True)
class Models:
    """The configurations of an experiment's networks, and the bytes of its text encoder and codec."""

    world: World
    student: Config  # and the critic's, and the teacher's
    real: Config
    text: int
    codec: int
    apart: bool  # see `begins_apart`
    sizes: Sizes

    def trained(self) -> Denoiser:
        """A network of the student's shape in training, on the meta device."""
        with torch.device("meta"):
            return make_network(self.sizes.params, self.student, trained=True)


def open_models(params: Params) -> Models:
    """An experiment's networks, outlined on the meta device. Raises UserError where a configuration is not known."""
    world = open_world(params.world)
    with torch.device("meta"):
        text, codec = world.outline(TEXT, params), world.outline(CODEC, params)
        coder = cast(Codec, codec)
        own = params.model and build_denoiser(params.model, coder.channels, seed=0).transformer
        student = own or world.outline(TRANSFORMER, params)
        folder = params.distill.real_score
        real = student if folder is None else world.outline(TRANSFORMER, params, folder)
    latent = (coder.channels, *coder.latent_size(world.height, world.width))
    half = params.runtime.precision == "bf16" and world.base is not None  # as Wan's text encoder is loaded
    return Models(
        world,
        _config(student),
        _config(real),
        network_bytes(text) // (2 if half else 1),
        network_bytes(codec),
        begins_apart(coder),
        Sizes(params, latent, world.words(params), 1),
    )


def make_meta(params: Params, shape: Config, half: bool) -> Denoiser:
    """A frozen network on the meta device; half: in bf16 if the experiment computes in it."""
    with torch.device("meta"):
        network = Denoiser(WanTransformer3DModel(**shape), "flow", coordinates=False).requires_grad_(False)
    if half and params.runtime.precision == "bf16":
        network.cast(torch.bfloat16)
    return network


def role_bytes(role: Role) -> dict[str, int]:
    """Bytes of a role's parameters and buffers, gradients, optimiser states and averaged weights."""
    parameters = list(role.module.parameters())
    states = sum(
        STATES[type(optimizer)] * p.numel() * p.element_size() + (4 if isinstance(optimizer, torch.optim.AdamW) else 0)
        for optimizer in role.optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    )
    return {
        "parameters": network_bytes(role.module),
        "gradients": storage_bytes([p for p in parameters if p.requires_grad]),
        OPTIMISER: states,
        "average": 0 if role.average is None else network_bytes(role.average),
    }


def meta_role(models: Models, settings: config.Optimizer) -> Role:
    """A role in training, on the meta device."""
    return make_role(models.trained(), settings, steps=1)


def pinned_bytes(network: nn.Module, gpus: int) -> int:
    """Bytes of pinned memory for a GPU's share of a network: torch rounds each tensor up to a power of two."""
    rows = [(parameter, -(-len(parameter) // gpus)) for parameter in network.parameters()]
    sizes = (count * parameter[0].numel() * parameter.element_size() for parameter, count in rows)
    return sum(1 << (size - 1).bit_length() for size in sizes)


def _config(transformer: nn.Module) -> Config:
    return {
        name: value
        for name, value in cast(WanTransformer3DModel, transformer).config.items()
        if not name.startswith("_")
    }
