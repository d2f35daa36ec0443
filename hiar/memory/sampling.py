"""Memory of sampling besides the weights: the caches and activations of a walk, and those of decoding.

The walk itself is run, on tensors without memory, with two layers and with three.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from hiar.config import Order, Passes
from hiar.memory.counting import Counting, imagined
from hiar.models.denoiser import Denoiser
from hiar.models.generator import Generator
from hiar.rollout.cell import Rollout
from hiar.rollout.walk import walk
from hiar.worlds.interface import Codec


def walk_bytes(source: Generator, rollout: Rollout, order: Order, passes: Passes) -> int:
    """Peak bytes of a walk of one video; ``n`` at a time take ``n`` times as much."""
    config = {name: value for name, value in source.denoiser.transformer.config.items() if not name.startswith("_")}
    two, three = (_peak(source, rollout, order, passes, config | {"num_layers": layers}) for layers in (2, 3))
    return two + (config["num_layers"] - 2) * (three - two)


def decode_bytes(source: Generator, frames: int) -> tuple[int, int]:
    """Peak bytes while a video of ``frames`` latent frames is decoded part by part, and bytes kept between parts."""
    channels, *size = source.latent_size
    with imagined():
        count = Counting()
        decode(count, (1, channels, min(source.codec.chunk, frames), *size), source.codec)
    return count.peaks["decoding"], count.peaks["between"]


@torch.no_grad()
def walk_through(count: Counting, student: Denoiser, rollout: Rollout, order: Order, passes: Passes) -> None:
    """Run a walk from start to end, counted."""
    with count, count.phase("walk"):
        for _ in walk(student, rollout, order, passes=passes):
            pass


@torch.no_grad()
def decode(count: Counting, part: tuple[int, ...], codec: Codec) -> None:
    """Decode two parts (B, C, f, h, w) of a video, counted; the second one starts from what the first has left."""
    latents = torch.zeros(part, device=codec.device)
    decoder = codec.decoding()
    with count:
        with count.phase("decoding"):
            for _ in range(2):
                decoder(latents)
        with count.phase("between"):  # what a decoder keeps
            pass


def _peak(source: Generator, rollout: Rollout, order: Order, passes: Passes, config: dict[str, Any]) -> int:
    grid, card = rollout.grid, source.card
    enough = 2 * grid.steps  # blocks to reach the fullest pass of any walk
    with imagined():
        count = Counting()
        network = Denoiser(WanTransformer3DModel(**config), card.prediction, card.coordinates)
        network.eval().requires_grad_(False).cast(source.denoiser.dtype)
        short = replace(grid, blocks=enough if grid.blocks is None else min(grid.blocks, enough), given=0)
        text = torch.zeros(1, *rollout.text.shape[1:], dtype=source.denoiser.dtype)
        one = replace(rollout, grid=short, samples=[0], text=text, changes={}, sigmas=rollout.sigmas.cpu())
        walk_through(count, network, one, order, passes)
    return count.peaks["walk"]
