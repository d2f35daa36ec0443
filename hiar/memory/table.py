"""The text of `hiar plan`: a table for each stage with a line of advice, and the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from hiar.config import Adopted, Params, Variant
from hiar.contexts import rule_of
from hiar.io.free import GB
from hiar.memory.disk import disk
from hiar.memory.forecast import TRAINED, USABLE, Forecast, forecast, sampling
from hiar.memory.host import host, most
from hiar.memory.networks import Models
from hiar.memory.steps import live_caches, training_grid
from hiar.worlds.interface import AHEAD

OFFLOAD = {"init": ["optimizers"], "distill": ["real_score", "optimizers"]}  # what a stage can offload to the host
STAGES = ("pairs", "init", "distill", "sample")  # that fill a GPU
MANY = 64  # the largest number of GPUs that is advised


def lines(models: Models, stages: tuple[str, ...], batch: int, gpus: int, memory: float) -> Iterator[str]:
    """The plan, line by line, as it is computed. memory: bytes of a GPU."""
    params, world = models.sizes.params, models.world
    frames, cards = params.video.frames, f"{gpus} GPU{'s' if gpus > 1 else ''} of {memory / GB:g} GB"
    yield (
        f"{world.name}, {world.width}x{world.height}, clips of {frames} latent frames; "
        f"{batch} sample(s) a GPU at a time; {cards}, of which {USABLE:.0%} may be filled"
    )
    spec = params.distill
    turns = -(-spec.all_steps * spec.batch // AHEAD) + -(-spec.critic_rollouts // AHEAD)
    often = f", {AHEAD} of distill's at a time: {turns} times at most" if world.base is not None else ""
    yield f"text encoder: {models.text / GB:.2f} GB while new prompts are embedded{often}"
    foreign = params.pairs.source is not None  # their captions are not from a file of ours
    own = 0 if foreign else params.pairs.count
    prompts, kept = world.kept(own + spec.all_steps * spec.batch + spec.critic_rollouts)
    if prompts:
        others = params.pairs.count if foreign else 0
        prompts, kept = prompts + others, kept + others * (kept // prompts)
        yield f"their embeddings: up to {kept / GB:.2f} GB of {prompts} prompts, in HIAR_CACHE, else ~/.cache/hiar"
    adopted = isinstance(params.init, Adopted)
    for stage in [stage for stage in stages if not (adopted and stage == "init")]:
        variant, name = dearest(params)
        found = forecast(models, stage, variant, batch, gpus)
        yield ""
        yield f"{stage}{f' {name}' if stage in ('distill', 'sample') else ''}, GB a GPU"
        yield from (f"  {e.role:<13}{e.what:<18}{e.bytes / GB:>9.2f}" for e in found.entries if e.bytes)
        yield f"  {'all':<31}{found.total / GB:>9.2f}  {advice(models, found, variant, batch, gpus, memory)}"
        yield from (f"  {e.role:<13}{e.what:<18}{e.bytes / GB:>9.2f}  on the host" for e in found.host if e.bytes)
        if stage in TRAINED:
            parts = host(models, stage, gpus)
            said = ", ".join(f"{name} {size / GB:.2f}" for name, size in parts.items())
            beside = "beside that, " if found.host else ""
            yield f"  host's memory, {beside}of each process: {most(parts) / GB:.2f} ({said})"
    yield ""
    artifacts = disk(models)
    yield f"disk, GB, of each of {len(params.seeds)} seed(s), in the order of the stages"
    yield from (f"  {name:<31}{size / GB:>9.2f}" for name, size in artifacts.items() if size)
    yield f"  {'all':<31}{sum(artifacts.values()) / GB:>9.2f}"


def dearest(params: Params) -> tuple[Variant, str]:
    """The variant that takes the most memory, of those to be distilled, and its name."""

    def cost(name: str) -> tuple[int, bool]:
        variant = params.variant(name)
        grid = training_grid(params, variant, params.schedule.student_steps)
        return live_caches(grid, variant), variant.forward_kl is not None

    name = max(params.compare.distill or params.variants, key=cost)
    return params.variant(name), name


def _changed(params: Params, **runtime: object) -> Params:
    return params.model_copy(update={"runtime": params.runtime.model_copy(update=runtime)})


def advice(models: Models, found: Forecast, variant: Variant, batch: int, gpus: int, memory: float) -> str:
    """Whether a stage fits, or else the first changes that make it fit."""
    if found.fits(memory):
        return "fits"
    params = models.sizes.params
    # Each step is imagined once, which takes many seconds.
    peaks = {(params.runtime.checkpointing, batch): found.peaks}

    def again(params: Params = params, batch: int = batch, gpus: int = gpus) -> Forecast:
        changed = replace(models, sizes=replace(models.sizes, params=params))
        step = params.runtime.checkpointing, batch
        made = forecast(changed, found.stage, variant, batch, gpus, peaks.get(step))
        peaks.setdefault(step, made.peaks)
        return made

    saving = _changed(params, checkpointing=True)
    trains = found.stage in ("init", "distill")
    offload = OFFLOAD[found.stage] if trains else []
    lighter = _changed(saving, offload=offload)
    ways: list[tuple[str, Callable[[], Forecast]]] = []
    if trains and not params.runtime.checkpointing:
        ways.append(("runtime.checkpointing: true", lambda: again(saving)))
    if batch > 1:
        ways.append(("1 sample at a time", lambda: again(saving if trains else params, batch=1)))
    if trains and {*params.runtime.offload} != {*offload}:
        ways.append((f"runtime.offload: [{', '.join(offload)}]", lambda: again(lighter, batch=1)))
    if trains:
        counts = [2**n for n in range(1, MANY.bit_length()) if 2**n > gpus]
        ways += [(f"{n} GPUs", lambda n=n: again(lighter, batch=1, gpus=n)) for n in counts]  # type: ignore[misc]
    if found.stage == "sample" and not rule_of(variant.context).waits:
        ways.append(("a walk step by step (the stage's own choice then)", lambda: sampling(models, variant, 1, True)))
    told: list[str] = []
    for way, make in ways:
        if way.endswith("GPUs"):
            told = [one for one in told if not one.endswith("GPUs")]
        told.append(way)
        if make().fits(memory):
            return f"does not fit; with {', '.join(told)} it does"
    return "does not fit, even with every option: use GPUs with more memory, or a shorter clip or window"
