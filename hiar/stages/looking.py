"""Videos looked through part by part: each is read once, whoever observes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hiar.judges.interface import Findings, Observer

FEW = 16  # findings of parts that lie about at a time: the memory between many small ones is lost


def look_through(
    parts: Iterable[Tensor],
    observers: Sequence[Observer],
    captions: Sequence[str],
    advance: Callable[[int], None] = lambda frames: None,
) -> tuple[list[Findings], int]:
    """What each observer finds in parts uint8 (V, f, H, W, 3) of videos, read once, and how many frames they have.

    captions: of the V videos, and of what may come after them. advance: is told of frames when they are done.
    """
    findings: list[list[Findings]] = [[] for _ in observers]
    before, length = None, 0
    for part in parts:
        for observer, found in zip(observers, findings, strict=True):
            found.append(observer.look(part, before, captions[: len(part)]))
            if len(found) == FEW:
                found[:] = [_joined(found)]
        before, length = part[:, -1:].clone(), length + part.shape[1]
        advance(len(part) * part.shape[1])
    return [_joined(found) for found in findings], length


def _joined(parts: Sequence[Findings]) -> Findings:
    """What was found in one part of some videos after the other, in whole videos."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
