"""Observe videos part by part: each is read once, for all observers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hiar.judges.interface import Findings, Observer

FEW = 16  # parts whose findings are kept before they are joined: many small tensors fragment memory


def look_through(
    parts: Iterable[Tensor],
    observers: Sequence[Observer],
    captions: Sequence[str],
    advance: Callable[[int], None] = lambda frames: None,
) -> tuple[list[Findings], int]:
    """What each observer finds in parts uint8 (V, f, H, W, 3) of videos, read once, and how many frames they have.

    captions: of the V videos, maybe followed by later ones'. advance: called with the number of frames done.
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
    """The findings in consecutive parts of some videos, joined along time."""
    return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
