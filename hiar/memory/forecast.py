"""GPU memory of each stage of an experiment, from params.yaml and configurations alone.

Parameters, gradients, optimiser states, averages and rings are computed from sizes; activations are those of an
imagined step. Over several GPUs, parameters and what belongs to them are sharded evenly (FSDP); everything else is per
GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import cast

from hiar import config
from hiar.config import Order, Params, Passes, Variant
from hiar.grid import fastest
from hiar.memory import inits, steps
from hiar.memory.counting import Counting, imagined, network_bytes, storage_bytes
from hiar.memory.networks import OPTIMISER, Models, make_meta, meta_role, pinned_bytes, role_bytes
from hiar.memory.sampling import decode
from hiar.memory.steps import Config, Peaks, Sizes, imagine, live_caches, training_grid
from hiar.models.denoiser import Denoiser
from hiar.models.rings import ring_bytes
from hiar.training.parallel import layers_of
from hiar.worlds.interface import CODEC, Codec

USABLE = 0.9  # of a GPU's memory: the rest is for its context, kernels' own buffers and fragmentation
TRAINED = ("init", "distill")
UPDATE = "update"  # the phase with an optimiser's states on the GPU and no activations


@dataclass(frozen=True)
class Entry:
    """Bytes of something that a GPU holds for a role."""

    role: str
    what: str
    bytes: int


@dataclass(frozen=True)
class Forecast:
    """A GPU's peak memory in a stage. peaks: those of a training's step, see `step_peaks`."""

    stage: str
    entries: tuple[Entry, ...]
    host: tuple[Entry, ...] = ()  # in the host's memory instead of the GPU's
    peaks: Peaks = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    def fits(self, memory: float) -> bool:
        """Whether it fits in a GPU of ``memory`` bytes, with margin."""
        return self.total <= USABLE * memory


@dataclass
class _Training:
    """A training's memory on a GPU, before what `forecast` adds: the teacher of the pairs, offloading and sharding.

    host: what is kept on the host instead. gathered: the networks whose layers are gathered if they are sharded.
    """

    entries: list[Entry]
    host: list[Entry]
    gathered: list[Denoiser]
    rings: int = 0


def forecast(
    models: Models, stage: str, variant: Variant, batch: int, gpus: int = 1, peaks: Peaks | None = None
) -> Forecast:
    """A stage's memory on each of ``gpus``, with ``batch`` samples per GPU at a time; ``variant``: the method.

    peaks: a training's `step_peaks`, if they are known. Raises ValueError for a stage that does not run on a GPU.
    """
    models = replace(models, sizes=replace(models.sizes, batch=batch))
    sizes, params = models.sizes, models.sizes.params
    if stage == "sample":
        return sampling(models, variant, batch)
    if stage == "pairs":
        return Forecast(stage, (_teacher("teacher", models), *_activations(_solver(sizes, models.student), 0)))
    if stage not in TRAINED:
        raise ValueError(f"{stage} has no networks that fill a GPU")
    training = _init(models, gpus) if stage == "init" else _distillation(models, variant, gpus)
    entries, host = training.entries, training.host
    if _solves(params, stage, variant):
        entries.append(_teacher("teacher of the pairs", models))
    step = step_peaks(models, stage, variant, batch) if peaks is None else peaks
    peaks = dict(step)
    if "optimizers" in params.runtime.offload:
        optimisers = [entry for entry in entries if entry.what == OPTIMISER]
        entries = [entry for entry in entries if entry.what != OPTIMISER]
        host += optimisers
        peaks[UPDATE] = max(entry.bytes for entry in optimisers)  # one role after the other
    if gpus > 1 or params.runtime.processes is not None:  # networks are sharded, even over a single one
        entries.append(Entry("all", "gathered layers", _gathered(params, training.gathered)))
        # Gradients are reduced once per update, when they are complete.
        entries.append(Entry("all", "whole gradients", storage_bytes(list(models.trained().parameters()))))
    return Forecast(stage, (*entries, *_activations(peaks, training.rings)), tuple(host), step)


def step_peaks(models: Models, stage: str, variant: Variant, batch: int) -> Peaks:
    """Peak bytes of each phase of a training's step, with ``batch`` samples per GPU at a time.

    They depend on ``runtime.checkpointing``, but neither on ``runtime.offload`` nor on the number of GPUs.
    """
    sizes = replace(models.sizes, batch=batch)
    student, others = models.student, [models.real]
    if stage == "init":
        kind = inits.KINDS[sizes.params.init.kind]
        trained, others = [student], [student] if kind.frozen else []
        peaks = imagine(lambda count, *n: kind.update(count, sizes, *n), sizes, trained, others)
    else:
        peaks = imagine(lambda count, *n: steps.distill(count, sizes, variant, *n), sizes, [student, student], others)
    if _solves(sizes.params, stage, variant):
        peaks |= _solver(replace(sizes, batch=sizes.params.pairs.batch), student)
    return peaks


def _solves(params: Params, stage: str, variant: Variant) -> bool:
    """Whether a training solves its pairs itself, which it does before anything is held for backward."""
    learns = stage == "init" or variant.forward_kl is not None or variant.forcing is not None
    return learns and not params.pairs.stored


def _init(models: Models, gpus: int) -> _Training:
    init = models.sizes.params.init
    if isinstance(init, config.Adopted):
        raise ValueError("an init that is adopted is not trained")
    entries = _role("student", models, gpus, init.training.optimizer)
    if isinstance(init, config.CausalOde | config.Consistency):
        entries.append(_teacher("teacher", models))
    return _Training(entries, [], [models.trained()])


def _distillation(models: Models, variant: Variant, gpus: int) -> _Training:
    sizes, params = models.sizes, models.sizes.params
    host: list[Entry] = []
    entries = _role("student", models, gpus, params.distill.generator)
    entries += _role("critic", models, gpus, params.distill.critic)
    # A real score that is the teacher itself also embeds prompts, and keeps its precision.
    real = make_meta(params, models.real, half=params.distill.real_score is not None)
    if "real_score" in params.runtime.offload:
        host.append(Entry("real score", "parameters", pinned_bytes(real, gpus)))
    else:
        entries.append(_frozen("real score", real, gpus))
    if params.distill.windows > 1 and models.apart:
        entries.append(Entry("codec", "parameters", models.codec))
    return _Training(
        entries,
        host,
        gathered=[models.trained(), models.trained(), real],
        rings=0 if variant.forcing else training_rings(sizes, models.student, variant),
    )


def training_rings(sizes: Sizes, student: Config, variant: Variant) -> int:
    """Bytes of a recorded self-rollout's rings at its end; slots without a block take none."""
    params = sizes.params
    grid = training_grid(params, variant, params.schedule.student_steps)
    assert grid.blocks is not None
    slots, itemsize = min(grid.blocks, grid.window), 2 if params.runtime.precision == "bf16" else 4
    # At its last step, the last block's keys and values lie in two caches but in memory once.
    slots = slots * live_caches(grid, variant) - (grid.rule.left and grid.steps > 1)
    return sizes.batch * ring_bytes(
        student["num_layers"], _dim(student), _block_tokens(sizes, student), slots, itemsize
    )


def _role(name: str, models: Models, gpus: int, settings: config.Optimizer) -> list[Entry]:
    return [Entry(name, what, -(-bytes_ // gpus)) for what, bytes_ in role_bytes(meta_role(models, settings)).items()]


def _frozen(name: str, network: Denoiser, gpus: int) -> Entry:
    return Entry(name, "parameters", -(-network_bytes(network) // gpus))


def _teacher(name: str, models: Models) -> Entry:
    """A frozen teacher, of which each process has the whole."""
    return _frozen(name, make_meta(models.sizes.params, models.student, half=False), 1)


def _solver(sizes: Sizes, teacher: Config) -> Peaks:
    return imagine(lambda count, network: steps.pairs(count, sizes, network), sizes, [], [teacher])


def _activations(peaks: Peaks, rings: int) -> list[Entry]:
    """The phase with the highest peak, and how much of it is rings."""
    phase = max(peaks, key=lambda name: peaks[name])
    rings = 0 if phase == UPDATE else rings
    entries = [Entry("rings", "keys and values", rings)] if rings else []
    return [*entries, Entry("activations", phase, peaks[phase] - rings)]


def _gathered(params: Params, networks: list[Denoiser]) -> int:
    """Bytes gathered from other GPUs' shards: each network without its blocks' layers, and the layers of two blocks."""
    roots, layers = [], []
    for network in networks:
        blocks = [[p for layer in layers_of(block) for p in layer.parameters()] for block in network.transformer.blocks]
        roots.append(network_bytes(network) - storage_bytes(blocks))
        layers.append(sum(p.numel() for p in blocks[0]) * (2 if params.runtime.precision == "bf16" else 4))
    return sum(roots) + 2 * max(layers)


def sampling(models: Models, variant: Variant, batch: int, step_by_step: bool = False) -> Forecast:
    """The stage's memory on the fastest walk, or step by step, with one step's cache: what it does if that is short."""
    sizes, params = replace(models.sizes, batch=batch), models.sizes.params
    way: tuple[Order, Passes] = ("step_first", "fused") if step_by_step else fastest(variant.context)
    walk = imagine(lambda count, *n: steps.sample(count, sizes, variant, way, *n), sizes, [], [models.student])["walk"]
    with imagined():
        count = Counting()
        codec, (channels, *size) = cast(Codec, models.world.outline(CODEC, params)), sizes.latent
        decode(count, (1, channels, min(codec.chunk, params.sample.frames), *size), codec)  # one video at a time
    caches = 1 if step_by_step else steps.sample_caches(params, variant)
    rings = caches * params.video.window_blocks
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


def _dim(transformer: Config) -> int:
    return int(transformer["num_attention_heads"] * transformer["attention_head_dim"])


def _block_tokens(sizes: Sizes, transformer: Config) -> int:
    _, *lengths = sizes.block_shape
    return math.prod(length // patch for length, patch in zip(lengths, transformer["patch_size"], strict=True))
