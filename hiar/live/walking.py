"""An endless video whose prompt may change during generation, on a time line shared with other students."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from hiar.config import Context, Order
from hiar.grid import fastest, make_grid, walk_passes
from hiar.models.card import Card, Walk
from hiar.models.generator import Generator
from hiar.rollout.cell import Rollout
from hiar.stages.fitting import way_of
from hiar.stages.rollouts import make_rollout, walk_asked
from hiar.stages.stream import clean_blocks
from hiar.stages.videos import decoding_ahead
from hiar.transfer import download


class Made(NamedTuple):
    """A block on the host: its prompt, its latent (C, k, h, w) in float32, its pictures, uint8 (F, H, W, 3)."""

    prompt: str
    latent: Tensor
    pictures: Tensor


@dataclass
class Walking:
    """The video that `hiar stream` would make of the same prompt, seed and changes, which may arrive during generation.

    first: its first block on the time line. changes: embeddings by the video's own block numbers, read by the walk as
    it proceeds.
    """

    source: Generator
    walk: Walk
    rollout: Rollout
    changes: dict[int, Tensor]
    prompts: dict[int, str]
    first: int
    blocks: Iterator[Tensor]  # latents (C, k, h, w)
    decode: Callable[[Tensor], Callable[[], Tensor]]
    made: int = 0

    def change(self, text: str, block: int) -> None:
        """Change the prompt from a block of the time line on, which must not have begun yet: see `blocks_ahead`.

        Raises UserError for a prompt that the world or the text encoder does not know; the previous one then stays.
        """
        self.source.world.check(text)
        embedded = self.source.embed([text])
        own = block - self.first
        # Drop changes that no block in progress needs: an endless video may get endlessly many.
        oldest = max((start for start in self.changes if start <= self.made - self.rollout.grid.steps), default=0)
        for start in [start for start in self.changes if start < oldest]:
            del self.changes[start], self.prompts[start]
        self.changes[own], self.prompts[own] = embedded, text

    def next_block(self) -> Callable[[], Made]:
        """Start the next block; returns a function that waits for it."""
        latent = next(self.blocks)
        prompt = self.prompts[max(start for start in self.prompts if start <= self.made)]
        self.made += 1
        arrived, pictures = download(latent.float()), self.decode(latent)
        return lambda: Made(prompt, arrived(), pictures())


def begin(
    source: Generator,
    prompt: str,
    seed: int,
    order: Order | None,
    context: Context | None,
    first: int,
    renew: bool = False,
) -> Walking:
    """A video that starts at block ``first`` of the time line; order, context: None means as trained.

    renew: recompute contexts when the prompt changes, see `hiar.rollout.renewed`.
    Raises UserError for a prompt that the world does not know, and for an invalid walk.
    """
    source.world.check(prompt)
    walk = walk_asked(source.card, order, context)
    changes: dict[int, Tensor] = {}
    rollout = make_rollout(source, source.embed([prompt]), walk, None, seed, [0])
    rollout = replace(rollout, changes=changes)
    way = way_of(source, walk, rollout, together=True)
    blocks = clean_blocks(source, walk, rollout, way=way, renew=renew)
    return Walking(source, walk, rollout, changes, {0: prompt}, first, blocks, decoding_ahead(source))


def blocks_ahead(card: Card, walk: Walk) -> int:
    """How many blocks a walk has begun beyond the one just finished, at most; their prompt can no longer change."""
    steps, window = card.schedule.student_steps, card.video.window_blocks
    grid = make_grid(
        walk.context, walk.level, blocks=None, steps=steps, window=window, sinks=card.video.sink_blocks, given=0
    )
    begun = most = 0
    for step in islice(walk_passes(grid, *fastest(walk.context)), 4 * steps * (window + 1)):
        begun = max([begun, *(cell.block + 1 for cell in step.denoise)])
        done = [cell.block + 1 for cell in step.denoise if cell.step == steps - 1]
        most = max([most, *(begun - block for block in done)])
    return most
