"""Diffusion forcing: what CausVid (arXiv 2412.07772) applies DMD to, instead of the student's own rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hiar.io.shards import Rows
from hiar.losses.regression import block_levels
from hiar.models.attention import BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.noise import normals, stream
from hiar.schedule import add_noise, expand


class Pairs(NamedTuple):
    """The teacher's trajectories, as distillation reads them.

    states: (N, S + 1, C, F, h, w) at sigmas (S + 1,). text_of: the text (B, words, dim) of rows (B,). clips: clean
    videos (N, 1, C, F, h, w) that came with them; None: the clean ends serve as these.
    """

    states: Rows
    sigmas: Tensor
    text_of: Callable[[Tensor], Tensor]
    clips: Rows | None = None


@dataclass(frozen=True)
class DiffusionForcing:
    """Clean videos of the pairs, each block noised to one of the student's levels, independently of the others.

    The clean level, at which a walk shows finished blocks, is among them. Such a block is context, and stays as it is.
    """

    pairs: Pairs
    sigmas: Tensor  # the student's levels, (S + 1,)
    attention: BlockCausal
    seed: int

    def __call__(self, student: Denoiser, videos: range, learn: bool) -> tuple[Tensor, Tensor]:
        """The student's x0 predictions (B, C, F, h, w), all noisy blocks at once, and the text (B, words, dim).

        videos: numbers, each of which determines a row of the pairs, levels and noise. With gradients if ``learn``.
        """
        states, _, text_of, clips = self.pairs
        randoms = [stream("forcing levels", self.seed, sample=number) for number in videos]
        rows = torch.tensor([int(random.integers(len(states))) for random in randoms])
        text = text_of(rows)
        clean = (states if clips is None else clips)[rows, -1].to(text.device)
        blocks = clean.shape[2] // self.attention.block
        levels = torch.cat([block_levels(1, blocks, len(self.sigmas), random) for random in randoms])
        sigma = self.sigmas[levels].repeat_interleave(self.attention.block, dim=1).to(text.device)
        level = expand(sigma, clean)
        noise = normals("forcing noise", self.seed, videos, clean.shape[1:]).to(clean)
        with torch.set_grad_enabled(learn):
            x0 = student(add_noise(clean, noise, level), sigma, text, self.attention)
            return torch.where(level > 0, x0, clean), text
