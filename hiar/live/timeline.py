"""Blocks and seconds of a video that goes on for ever, and how far ahead of its viewers it may be made."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Timeline:
    """The time line that all students share.

    first, block: pictures of a video's first block, and of every other one. lead: seconds that may be made ahead of
    what is watched. watched: how far anybody has watched, seconds. until: the blocks that may be made by now. made: the
    seconds that all students have made. begun: the block with which the last video begins. missing: pictures that the
    first blocks of all videos have fewer than others.
    """

    first: int
    block: int
    fps: float
    lead: float
    watched: float = 0.0
    until: int = 0
    made: float = 0.0
    begun: int | None = None
    missing: int = 0

    def restart(self) -> int:
        """The block with which a new video begins: the first one that nobody may have made."""
        if self.begun != self.until:  # else it takes the place of one of which nothing has been made
            self.missing += self.block - self.first
        self.begun = self.until
        return self.begun

    def seconds(self, block: int) -> float:
        """When a block begins that is not before the last restart."""
        shorter = self.missing - (self.block - self.first) * (block == self.begun)
        return (block * self.block - shorter) / self.fps

    def watch(self, seconds: float) -> bool:
        """Note how far somebody has watched, of what there is; returns whether more may be made than before."""
        if math.isfinite(seconds):
            self.watched = max(self.watched, min(seconds, self.made))
        allowed = math.ceil(((self.watched + self.lead) * self.fps + self.missing) / self.block)
        more = allowed > self.until
        self.until = max(self.until, allowed)
        return more
