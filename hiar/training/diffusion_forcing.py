"""Diffusion forcing: what CausVid (arXiv 2412.07772) takes DMD on, in the place of the student's own rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hiar.io.shards import Rows
from hiar.losses.regression import block_levels
from hiar.models.attention import BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.noise import normals, stream
from hiar.schedule import add_noise, expand

# States (N, S + 1, C, F, h, w), their sigmas (S + 1,), and the text (B, words, dim) of those that are asked for.
Pairs = tuple[Rows, Tensor, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class DiffusionForcing:
    """Clean videos of the pairs, each block noised to one of the student's levels, independently of the others."""

    pairs: Pairs
    attention: BlockCausal
    seed: int

    def __call__(self, student: Denoiser, videos: range, learn: bool) -> tuple[Tensor, Tensor]:
        """The x0 (B, C, F, h, w) that the student sees in all blocks at once, and the text (B, words, dim).

        videos: numbers, each of which decides a row of the pairs, levels and noise. With gradients if it is to
        ``learn``.
        """
        states, sigmas, text_of = self.pairs
        randoms = [stream("forcing levels", self.seed, sample=number) for number in videos]
        rows = torch.tensor([int(random.integers(len(states))) for random in randoms])
        text = text_of(rows)
        clean = states[rows, -1].to(text.device)
        block = self.attention.block
        noisy = len(sigmas) - 1  # a block that is shown clean would have nothing to learn
        levels = torch.cat([block_levels(1, clean.shape[2] // block, noisy, random) for random in randoms])
        sigma = sigmas[levels].repeat_interleave(block, dim=1).to(text.device)
        noise = normals("forcing noise", self.seed, videos, clean.shape[1:]).to(clean)
        with torch.set_grad_enabled(learn):
            return student(add_noise(clean, noise, expand(sigma, clean)), sigma, text, self.attention), text
