"""What each stage of an experiment takes of a GPU's memory and of the disk, from params.yaml and configurations alone.

Parameters, gradients, optimiser states, averages and rings are arithmetic; activations are those of an imagined step.
Over several GPUs parameters and what goes with them are sharded evenly (FSDP), everything else is a GPU's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn

from hiar import config
from hiar.config import Params, Variant
from hiar.memory import inits, steps
from hiar.memory.counting import Counting, imagined, network_bytes, storage_bytes
from hiar.memory.sampling import decode
from hiar.memory.steps import Config, Peaks, Sizes, imagine, live_caches, make_network, training_grid
from hiar.models.denoiser import Denoiser, build_denoiser
from hiar.models.rings import ring_bytes
from hiar.training.clips import begins_apart
from hiar.training.parallel import layers_of
from hiar.training.role import Role, make_role
from hiar.worlds.interface import CODEC, TEXT, TRANSFORMER, Codec, World, open_world

USABLE = 0.9  # of a GPU's memory: the rest is for its context, kernels' own buffers and fragments
STATES = {torch.optim.AdamW: 2, torch.optim.Muon: 1}  # tensors of a parameter's size
TRAINED = ("init", "distill")
OPTIMISER = "optimiser"
UPDATE = "update"  # the phase in which an optimiser's states are there and no activations


@dataclass(frozen=True)
class Entry:
    """Bytes of something that a GPU holds for a role."""

    role: str
    what: str
    bytes: int


@dataclass(frozen=True)
class Forecast:
    """A GPU's memory in a stage, at its fullest."""

    stage: str
    entries: tuple[Entry, ...]
    host: tuple[Entry, ...] = ()  # of the host's memory, in the place of the GPU's

    @property
    def total(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    def fits(self, memory: float) -> bool:
        """Whether it fits in a GPU of so many bytes, with margin."""
        return self.total <= USABLE * memory


@dataclass(frozen=True)
class Models:
    """The configurations of an experiment's networks, and the bytes of its text encoder and decoder."""

    world: World
    student: Config  # and the critic's, and the teacher's
    real: Config
    text: int
    codec: int
    apart: bool  # a clip's first latent frame is unlike the others
    sizes: Sizes

    def trained(self, layers: int | None = None) -> Denoiser:
        with torch.device("meta"):
            return make_network(self.sizes.params, self.student, layers, trained=True)


def open_models(params: Params) -> Models:
    """An experiment's networks in outline. Raises UserError where a configuration is not known."""
    world = open_world(params.world)
    with torch.device("meta"):
        text, codec = world.outline(TEXT, params), world.outline(CODEC, params)
        coder = cast(Codec, codec)
        own = params.model and build_denoiser(params.model, coder.channels, seed=0).transformer
        student = own or world.outline(TRANSFORMER, params)
        folder = params.distill.real_score
        real = student if folder is None else world.outline(TRANSFORMER, params, folder)
    latent = (coder.channels, *coder.latent_size(world.height, world.width))
    half = params.runtime.precision == "bf16" and world.base is not None  # as Wan's text encoder is read
    return Models(
        world,
        _config(student),
        _config(real),
        network_bytes(text) // (2 if half else 1),
        network_bytes(codec),
        begins_apart(coder),
        Sizes(params, latent, world.words(params), 1),
    )


def forecast(models: Models, stage: str, variant: Variant, batch: int, gpus: int = 1) -> Forecast:
    """A stage's memory on each of ``gpus``, ``batch`` samples a GPU at a time; ``variant``: the method.

    Raises ValueError for a stage that does not run on a GPU.
    """
    models = replace(models, sizes=replace(models.sizes, batch=batch))
    host: list[Entry] = []
    sizes, params = models.sizes, models.sizes.params
    offload = params.runtime.offload
    if stage == "sample":
        return _sample(models, variant)
    if stage == "pairs":
        peaks = _solver(sizes, models.student)
        frozen = _frozen("teacher", make_meta(params, models.student, half=False), 1)
        return Forecast(stage, (frozen, *_activations(peaks, 0)))
    if stage not in TRAINED:
        raise ValueError(f"{stage} has no networks that fill a GPU")
    if stage == "init":
        if isinstance(params.init, config.Adopted):
            raise ValueError("an init that is adopted is not trained")
        kind = inits.KINDS[params.init.kind]
        entries = _role("student", models, gpus, params.init.training.optimizer)
        if isinstance(params.init, config.CausalOde | config.Consistency):
            entries.append(_frozen("teacher", make_meta(params, models.student, half=False), 1))
        solves = True
        others = [models.student] if kind.frozen else []
        peaks = imagine(lambda count, *n: kind.update(count, sizes, *n), sizes, [models.student], others)
        gathered, rings = [models.trained()], 0
    else:
        entries = _role("student", models, gpus, params.distill.generator)
        entries += _role("critic", models, gpus, params.distill.critic)
        # One that is the teacher itself also embeds prompts, and stays as it is.
        real = make_meta(params, models.real, half=params.distill.real_score is not None)
        if "real_score" in offload:
            host.append(Entry("real score", "parameters", pinned_bytes(real, gpus)))
        else:
            entries.append(_frozen("real score", real, gpus))
        if params.distill.windows > 1 and models.apart:
            entries.append(Entry("codec", "parameters", models.codec))
        solves = variant.forward_kl is not None or variant.forcing is not None
        peaks = imagine(
            lambda count, *n: steps.distill(count, sizes, variant, *n),
            sizes,
            [models.student, models.student],
            [models.real],
        )
        gathered = [models.trained(), models.trained(), real]
        rings = 0 if variant.forcing else training_rings(sizes, models.student, variant)
    if solves and not params.pairs.stored:  # before anything is held for backward, by a teacher whole in each process
        entries.append(_frozen("teacher of the pairs", make_meta(params, models.student, half=False), 1))
        peaks |= _solver(replace(sizes, batch=params.pairs.batch), models.student)
    if "optimizers" in offload:
        host += [entry for entry in entries if entry.what == OPTIMISER]
        entries = [entry for entry in entries if entry.what != OPTIMISER]
        peaks[UPDATE] = max(entry.bytes for entry in host if entry.what == OPTIMISER)  # one role after the other
    if gpus > 1 or params.runtime.processes is not None:  # networks are sharded, be it over one
        entries.append(Entry("all", "gathered layers", _gathered(params, gathered)))
        # An update's are reduced once, when they are complete.
        entries.append(Entry("all", "whole gradients", storage_bytes(list(models.trained().parameters()))))
    return Forecast(stage, (*entries, *_activations(peaks, rings)), tuple(host))


def training_rings(sizes: Sizes, student: Config, variant: Variant) -> int:
    """Bytes of the rings that a recorded self-rollout has at its end, in which only blocks that there are take room."""
    params = sizes.params
    grid = training_grid(params, variant, params.schedule.student_steps)
    assert grid.blocks is not None
    slots, itemsize = min(grid.blocks, grid.window), 2 if params.runtime.precision == "bf16" else 4
    # What the last block leaves in one cache is, at its last step, what lies in the next.
    slots = slots * live_caches(grid, variant) - (grid.rule.left and grid.steps > 1)
    return sizes.batch * ring_bytes(
        student["num_layers"], _dim(student), _block_tokens(sizes, student), slots, itemsize
    )


def make_meta(params: Params, shape: Config, half: bool) -> Denoiser:
    """A frozen network without memory; half: in bf16 where the experiment computes in it."""
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


def _role(name: str, models: Models, gpus: int, settings: config.Optimizer) -> list[Entry]:
    return [Entry(name, what, -(-bytes_ // gpus)) for what, bytes_ in role_bytes(meta_role(models, settings)).items()]


def meta_role(models: Models, settings: config.Optimizer) -> Role:
    """A role in training without memory."""
    return make_role(models.trained(), settings, steps=1)


def pinned_bytes(network: nn.Module, gpus: int) -> int:
    """Bytes of the pinned memory that a GPU's share of a network takes: torch gives each tensor a power of two."""
    rows = [(parameter, -(-len(parameter) // gpus)) for parameter in network.parameters()]
    sizes = (count * parameter[0].numel() * parameter.element_size() for parameter, count in rows)
    return sum(1 << (size - 1).bit_length() for size in sizes)


def _frozen(name: str, network: Denoiser, gpus: int) -> Entry:
    return Entry(name, "parameters", -(-network_bytes(network) // gpus))


def _solver(sizes: Sizes, teacher: Config) -> Peaks:
    return imagine(lambda count, network: steps.pairs(count, sizes, network), sizes, [], [teacher])


def _activations(peaks: Peaks, rings: int) -> list[Entry]:
    """The fullest phase, and how much of it is rings."""
    phase = max(peaks, key=lambda name: peaks[name])
    rings = 0 if phase == UPDATE else rings
    entries = [Entry("rings", "keys and values", rings)] if rings else []
    return [*entries, Entry("activations", phase, peaks[phase] - rings)]


def _gathered(params: Params, networks: list[Denoiser]) -> int:
    """What a GPU holds of others' shards: all but the layers of each network, and the layers of two blocks."""
    roots, layers = [], []
    for network in networks:
        blocks = [[p for layer in layers_of(block) for p in layer.parameters()] for block in network.transformer.blocks]
        roots.append(network_bytes(network) - storage_bytes(blocks))
        layers.append(sum(p.numel() for p in blocks[0]) * (2 if params.runtime.precision == "bf16" else 4))
    return sum(roots) + 2 * max(layers)


def _sample(models: Models, variant: Variant) -> Forecast:
    sizes, params = models.sizes, models.sizes.params
    walk = imagine(lambda count, *n: steps.sample(count, sizes, variant, *n), sizes, [], [models.student])["walk"]
    with imagined():
        count = Counting()
        codec, (channels, *size) = cast(Codec, models.world.outline(CODEC, params)), sizes.latent
        decode(count, (1, channels, min(codec.chunk, params.sample.frames), *size), codec)  # one after the other
    rings = steps.sample_caches(params, variant) * params.video.window_blocks
    itemsize = 2 if params.runtime.precision == "bf16" else 4
    held = sizes.batch * ring_bytes(
        models.student["num_layers"], _dim(models.student), _block_tokens(sizes, models.student), rings, itemsize
    )
    entries = [
        _frozen("student", make_meta(params, models.student, half=True), 1),
        Entry("text encoder", "parameters", models.text if models.world.base is None else 0),
        Entry("decoder", "parameters", models.codec),
        Entry("rings", "keys and values", held),
        Entry("activations", "walk", walk - held),
        Entry("activations", "decoding", count.peaks["decoding"]),
    ]
    return Forecast("sample", tuple(entries))


def _config(transformer: nn.Module) -> Config:
    return {
        name: value
        for name, value in cast(WanTransformer3DModel, transformer).config.items()
        if not name.startswith("_")
    }


def _dim(transformer: Config) -> int:
    return int(transformer["num_attention_heads"] * transformer["attention_head_dim"])


def _block_tokens(sizes: Sizes, transformer: Config) -> int:
    _, *lengths = sizes.block_shape
    return math.prod(length // patch for length, patch in zip(lengths, transformer["patch_size"], strict=True))
