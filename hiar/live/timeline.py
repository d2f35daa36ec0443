"""Blocks and seconds of an endless video, and how far ahead of its viewers it may be made."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Timeline:
    """The time line that all students share.

    first, block: pictures in a video's first block, and in every other one. lead: seconds that may be made ahead of
    the foremost viewer, who is at ``watched`` seconds. until: blocks before this one may be made. made: seconds that
    all students have made. begun: the first block of the last video. missing: by how many pictures the first blocks of
    all videos so far are shorter than other blocks.
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
        """Begin a new video; returns its first block, the first that no student may have made yet."""
        if self.begun != self.until:  # else it replaces a video of which no block was made
            self.missing += self.block - self.first
        self.begun = self.until
        return self.begun

    def seconds(self, block: int) -> float:
        """The start time of a block, in seconds; it must not be before the last restart."""
        shorter = self.missing - (self.block - self.first) * (block == self.begun)
        return (block * self.block - shorter) / self.fps

    def watch(self, seconds: float) -> bool:
        """Note how far a viewer has watched, at most to what is made; returns whether more may be made than before."""
        if math.isfinite(seconds):
            self.watched = max(self.watched, min(seconds, self.made))
        allowed = math.ceil(((self.watched + self.lead) * self.fps + self.missing) / self.block)
        more = allowed > self.until
        self.until = max(self.until, allowed)
        return more
