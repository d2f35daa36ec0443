"""Peak bytes of each phase of the stages' forwards and backwards, on imagined networks.

Networks are not run with all their layers: what a further layer adds is measured by running two and three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from hiar.config import Context, Order, Params, Passes, Variant
from hiar.grid import Grid, make_grid, walk_passes
from hiar.losses.dmd import dmd_loss, score_difference
from hiar.losses.flow import flow_matching
from hiar.losses.forward_kl import forward_kl
from hiar.memory.counting import Counting, imagined
from hiar.memory.sampling import walk_through
from hiar.models.attention import Bidirectional, BlockCausal
from hiar.models.denoiser import Denoiser, guided_x0
from hiar.rollout.cell import Rollout
from hiar.schedule import student_sigmas
from hiar.training.clips import as_clips, frame_weights
from hiar.training.diffusion_forcing import DiffusionForcing, Pairs
from hiar.training.self_rollout import SelfRollout
from hiar.worlds.interface import CODEC, Codec, open_world

Config = dict[str, Any]  # the arguments of a transformer
Peaks = dict[str, int]  # bytes by phase


@dataclass(frozen=True)
class Sizes:
    """Sizes of an experiment's tensors: a latent frame (C, h, w), words per prompt; ``batch`` samples at a time."""

    params: Params
    latent: tuple[int, int, int]
    words: int
    batch: int

    @property
    def blocks(self) -> int:
        """Blocks of a training clip."""
        return self.params.video.frames // self.params.video.block

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """(C, k, h, w) of one block."""
        channels, height, width = self.latent
        return channels, self.params.video.block, height, width

    def clips(self, count: int) -> tuple[int, ...]:
        """(count, C, F, h, w) of training clips."""
        channels, height, width = self.latent
        return count, channels, self.params.video.frames, height, width

    def text(self, config: Config, count: int) -> Tensor:
        """Embeddings of ``count`` prompts, (count, words, text_dim)."""
        return torch.zeros(count, self.words, config["text_dim"])

    def autocast(self) -> torch.autocast:
        """The autocast that accelerate uses."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.params.runtime.precision == "bf16")


def make_network(params: Params, config: Config, layers: int | None = None, trained: bool = False) -> Denoiser:
    """A denoiser of a configuration, optionally with fewer layers; if ``trained``, its gradients are there already."""
    config = config if layers is None else config | {"num_layers": layers}
    prediction, coordinates = (params.model.prediction, params.model.coordinates) if params.model else ("flow", False)
    network = Denoiser(WanTransformer3DModel(**config), prediction, coordinates)
    if not trained:
        if params.runtime.precision == "bf16":
            network.cast(torch.bfloat16)
        return network.eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return network.train().checkpoint(params.runtime.checkpointing)


def training_grid(params: Params, variant: Variant, steps: int) -> Grid:
    """The grid that a self-rollout walks."""
    blocks = params.distill.windows * params.video.frames // params.video.block
    return _grid(params, variant.context, blocks, steps)


def sample_caches(params: Params, variant: Variant) -> int:
    """The number of caches of a walk that samples."""
    return _grid(params, variant.context, None, params.schedule.student_steps).caches


def live_caches(grid: Grid, variant: Variant) -> int:
    """The most caches of a grid that are in memory at a time."""
    alive: set[int] = set()
    most = 0
    for step in walk_passes(grid, variant.order):
        alive |= {grid.cache(cell.step) for cell in step.write + step.denoise}
        alive |= {left for cell in step.denoise if (left := grid.leaves(cell.step)) is not None}
        most = max(most, len(alive))
        alive -= {grid.cache(cell.step) for cell in step.denoise if grid.ends(cell)}
    return most


def distill(
    count: Counting, sizes: Sizes, variant: Variant, student: Denoiser, critic: Denoiser, real: Denoiser
) -> None:
    """A generator update and a critic update, as in `hiar.training.distillation` but without the optimisers."""
    params, spec, config = sizes.params, sizes.params.distill, student.transformer.config
    own = SelfRollout(sizes.block_shape, spec.windows, variant, params.video, params.schedule, params.conventions)
    steps = params.schedule.student_steps
    # With one cache at a time, no exit step takes more memory than the first.
    exit_step = 0 if live_caches(training_grid(params, variant, steps), variant) == 1 else steps - 1
    prompts = sizes.text(config, sizes.batch)
    samples, clips = range(sizes.batch), sizes.clips(sizes.batch * spec.windows)
    text, noise, sigma = prompts.repeat_interleave(spec.windows, dim=0), torch.zeros(clips), torch.zeros(clips[0])
    trajectories, sigmas = torch.zeros(1, steps + 1, *clips[1:]), student_sigmas(params.schedule)
    forced = DiffusionForcing(Pairs(trajectories, sigmas, lambda _: text), sigmas, causal(params), seed=0)

    def roll_out(learn: bool) -> Tensor:
        if variant.forcing is not None:
            return forced(student, range(clips[0]), learn)[0]
        return own(student, prompts, 0, samples, exit_step, learn)

    codec = cast(Codec, open_world(params.world).outline(CODEC, params))

    def clips_of(windows: Tensor) -> Tensor:
        return windows if variant.forcing else as_clips(windows, spec.windows, params.video.block, codec)

    with count:
        with count.phase("rollout"), sizes.autocast():
            windows = roll_out(learn=True)
        with count.phase("later windows re-encoded"):
            windows = clips_of(windows)
        with count.phase("scores"), sizes.autocast():
            gradient = score_difference(real, critic, windows, noise, sigma, text, text, spec.guidance)
        weights = None if variant.forcing else frame_weights(windows, spec.windows, params.video.block, codec)
        loss = dmd_loss(windows, gradient, weights)
        if variant.forward_kl is not None:
            kl = variant.forward_kl
            attention = Bidirectional() if kl.attention == "bidirectional" else causal(params)
            trajectory = torch.zeros(sizes.batch, steps + 1, *sizes.clips(1)[1:])
            with count.phase("forward-KL"), sizes.autocast():
                loss = loss + forward_kl(student, trajectory, sigmas, kl.steps, prompts, attention)
        with count.phase("backward"):
            loss.backward()
        del loss, gradient, windows
        with count.phase("critic's rollout"):
            with sizes.autocast():
                windows = roll_out(learn=False)
            windows = clips_of(windows)
        with count.phase("critic"):
            with sizes.autocast():
                loss = flow_matching(critic, windows, noise, sigma, text, Bidirectional(), spec.critic_floor)
            loss.backward()


@torch.no_grad()
def pairs(count: Counting, sizes: Sizes, teacher: Denoiser) -> None:
    """A step of the teacher's solver."""
    text = sizes.text(teacher.transformer.config, sizes.batch)
    x, sigma = torch.zeros(sizes.clips(sizes.batch)), torch.zeros(sizes.batch)
    with count, count.phase("pairs"), sizes.autocast():
        guided_x0(teacher, x, sigma, text, text, sizes.params.pairs.guidance)


@torch.no_grad()
def sample(count: Counting, sizes: Sizes, variant: Variant, way: tuple[Order, Passes], student: Denoiser) -> None:
    """A walk as in `hiar sample`, up to where its passes and rings are full; ``way``: its order and passes."""
    params, schedule = sizes.params, sizes.params.schedule
    blocks = min(params.sample.frames // params.video.block, 2 * schedule.student_steps)
    grid = _grid(params, variant.context, blocks, schedule.student_steps)
    text = sizes.text(student.transformer.config, sizes.batch).to(student.dtype)
    sigmas = student_sigmas(schedule)
    samples = range(sizes.batch)
    rollout = Rollout(grid, sigmas, sizes.block_shape, schedule.renoise, 0, samples, text, {}, params.conventions)
    walk_through(count, student, rollout, *way)


def imagine(run: Callable[..., None], sizes: Sizes, trained: Sequence[Config], frozen: Sequence[Config] = ()) -> Peaks:
    """The peaks of ``run(counting, *networks)``, on trained networks, all of one size, and then frozen ones.

    Every further layer adds what a third adds to two. Frozen networks beside trained ones free a layer's tensors as
    soon as it has run.
    """
    grown = trained or frozen
    two, three = (
        _peaks(
            run,
            sizes,
            [(one, True, layers) for one in trained],
            [(one, False, layers if one in grown else 1) for one in frozen],
        )
        for layers in (2, 3)
    )
    return {phase: two[phase] + (grown[0]["num_layers"] - 2) * (three[phase] - two[phase]) for phase in two}


def _peaks(run: Callable[..., None], sizes: Sizes, *networks: Sequence[tuple[Config, bool, int]]) -> Peaks:
    """The peaks on networks of these configurations, trained or not, with so many layers."""
    chosen = [one for part in networks for one in part]
    with imagined():
        count = Counting()
        run(count, *(make_network(sizes.params, config, n, trained=trained) for config, trained, n in chosen))
    return count.peaks


def causal(params: Params) -> BlockCausal:
    """The block-causal attention of a clip."""
    return BlockCausal(params.video.block, params.video.window_blocks)


def _grid(params: Params, context: Context, blocks: int | None, steps: int) -> Grid:
    video = params.video
    window, sinks = video.window_blocks, video.sink_blocks
    return make_grid(context, blocks=blocks, steps=steps, window=window, sinks=sinks)
