"""An endless video whose prompt may change while it is made, on a time line that it shares with others."""

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
    """The video that `hiar stream` makes of a prompt, a seed and the changes that come while it is made.

    first: its first block on the time line. changes: embeddings by its own blocks, read by the walk as it goes on.
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
        """Show something else from a block of the time line on, which must not have begun yet: see `blocks_ahead`.

        Raises UserError for a prompt that the world or the text encoder does not know; the one before then holds on.
        """
        self.source.world.check(text)
        embedded = self.source.embed([text])
        own = block - self.first
        # What no block under way needs any more is forgotten: a video that goes on for ever may change for ever.
        oldest = max((start for start in self.changes if start <= self.made - self.rollout.grid.steps), default=0)
        for start in [start for start in self.changes if start < oldest]:
            del self.changes[start], self.prompts[start]
        self.changes[own], self.prompts[own] = embedded, text

    def next_block(self) -> Callable[[], Made]:
        """Ask for the next block, and return what waits for it."""
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
    """A video from block ``first`` of the time line on; order, context: None as trained.

    renew: at changes contexts are made anew, see `hiar.rollout.renewed`.
    Raises UserError for a prompt that the world does not know, and for a walk that cannot be.
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
    """How many blocks a walk has begun beyond the one that it has just finished: their prompt is settled."""
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
