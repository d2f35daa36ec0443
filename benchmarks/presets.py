"""Model shapes on which walks are measured, with random weights: speed does not depend on their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.walks import Walk
from hiar import config
from hiar.grid import Grid, make_grid
from hiar.models.denoiser import Denoiser, build_denoiser
from hiar.models.fp8 import use_fp8
from hiar.models.kernels import choose_kernel
from hiar.parameters import load_params
from hiar.rollout.cell import Rollout
from hiar.schedule import step_sigmas
from hiar.worlds.shapes.codec import PatchCodec
from hiar.worlds.wan.codec import WanCodec

SEED = 0


@dataclass(frozen=True)
class Autoencoder:
    """The shape of a Wan autoencoder in diffusers' terms; everything else is as in Wan2.1."""

    base_dim: int = 96
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2


@dataclass(frozen=True)
class Preset:
    """A model and the rollouts it makes.

    latent: channels, height and width of a latent frame. block, window: latent frames. stretch: video frames per latent
    frame; a video's first latent frame becomes a single one.
    """

    model: config.Model
    latent: tuple[int, int, int]
    block: int
    window: int
    steps: int
    shift: float
    renoise: config.Renoise
    dtype: torch.dtype
    codec: config.Codec | Autoencoder
    stretch: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(C, k, H, W) of one block."""
        channels, height, width = self.latent
        return channels, self.block, height, width

    def frames(self, blocks: int) -> int:
        """Frames of a video of ``blocks`` blocks."""
        return (blocks * self.block - 1) * self.stretch + 1

    @property
    def window_blocks(self) -> int:
        return self.window // self.block

    def grid(self, walk: Walk, blocks: int) -> Grid:
        return make_grid(walk.context, blocks=blocks, steps=self.steps, window=self.window_blocks)


@dataclass(frozen=True)
class Setup:
    """A preset's networks on a device, and a batch of prompts (B, words, text_dim)."""

    preset: Preset
    denoiser: Denoiser
    codec: PatchCodec | WanCodec
    text: Tensor

    @property
    def device(self) -> torch.device:
        return self.text.device

    def kernel(self) -> str | None:
        """The attention kernel to use, as `hiar sample` chooses it."""
        preset, model = self.preset, self.preset.model
        _, height, width = preset.latent
        frame = (height // model.patch) * (width // model.patch)
        shape = (preset.block * frame, preset.window * frame, model.heads, model.head_dim, len(self.text))
        return choose_kernel(*shape, self.device, self.text.dtype)

    def rollout(self, grid: Grid) -> Rollout:
        preset = self.preset
        sigmas = step_sigmas(preset.steps, preset.shift)
        return Rollout(grid, sigmas, preset.shape, preset.renoise, SEED, range(len(self.text)), self.text)


def build(preset: Preset, device: torch.device, batch: int, weights: bool = True, fp8: bool = False) -> Setup:
    """The frozen networks, the same in every process. Without ``weights`` the denoiser has none until `map_weights`.

    fp8: prepare its linear layers for fp8 weights.
    """
    with device if weights else torch.device("meta"):
        denoiser = build_denoiser(preset.model, preset.latent[0], SEED).eval().requires_grad_(False)
    denoiser.cast(preset.dtype)
    if fp8:
        use_fp8(denoiser)
    with device:
        codec = _build_codec(preset.codec).eval().requires_grad_(False)
    words = preset.model.text_length, preset.model.text_dim
    text = torch.randn(batch, *words, generator=torch.Generator().manual_seed(SEED))
    return Setup(preset, denoiser, codec, text.to(device, preset.dtype))


def _build_codec(shape: config.Codec | Autoencoder) -> PatchCodec | WanCodec:
    if isinstance(shape, Autoencoder):
        return WanCodec(
            AutoencoderKLWan(shape.base_dim, dim_mult=[*shape.dim_mult], num_res_blocks=shape.num_res_blocks)
        )
    return PatchCodec(shape.patch, shape.channels, shape.width, shape.depth)


def map_weights(setup: Setup, path: Path) -> None:
    """Load the denoiser's weights from a safetensors file that other processes map too, as checkpoints are loaded.

    On a CPU all processes then share the pages of the file in memory and in the last-level cache.
    """
    weights = load_file(path, device=str(setup.device))
    setup.denoiser.load_state_dict(weights, assign=True)
    setup.denoiser.requires_grad_(False)


def world() -> Preset:
    """The default experiment's student, from params.yaml."""
    params = load_params(Path(__file__).parents[1] / "params.yaml")
    world, codec, model = params.world, params.codec, params.model
    assert world.kind == "shapes" and codec is not None and model is not None
    assert params.schedule.student_shift is not None
    side = world.size // codec.patch
    return Preset(
        model,
        (codec.channels, side, side),
        params.video.block,
        params.video.window,
        params.schedule.student_steps,
        params.schedule.student_shift,
        params.schedule.renoise,
        torch.float32,
        codec,
        stretch=1,
    )


def wan(heads: int, layers: int, ffn: int) -> Preset:
    """Wan2.1's text-to-video transformers at 832x480, walked as in the paper: blocks of 3 frames, a window of 21."""
    model = _wan_model(heads, 128, layers, ffn, text_dim=4096, text_length=512)
    return Preset(model, (16, 60, 104), 3, 21, 4, 5.0, "sde", torch.bfloat16, Autoencoder(), stretch=4)


def wan_tiny() -> Preset:
    """Wan's layout, types and prediction, small enough for any processor."""
    model = _wan_model(2, 16, 2, 64, text_dim=32, text_length=8)
    codec = Autoencoder(base_dim=4, dim_mult=(1, 2, 2, 2), num_res_blocks=1)
    return Preset(model, (16, 4, 6), 3, 9, 4, 5.0, "sde", torch.bfloat16, codec, stretch=4)


def _wan_model(heads: int, head_dim: int, layers: int, ffn: int, text_dim: int, text_length: int) -> config.Model:
    return config.Model(
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        ffn=ffn,
        freq_dim=256,
        patch=2,
        prediction="flow",
        coordinates=False,
        text_dim=text_dim,
        text_length=text_length,
    )


PRESETS: dict[str, Callable[[], Preset]] = {
    "world": world,
    "wan-1.3b": lambda: wan(heads=12, layers=30, ffn=8960),
    "wan-14b": lambda: wan(heads=40, layers=40, ffn=13824),
    "wan-tiny": wan_tiny,
}
