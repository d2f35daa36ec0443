"""The teacher's trajectories for a training: from the disk, or, where none are stored, solved as they are drawn.

The two are the same trajectories but for rounding, since each follows from its number alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hiar.config import Params
from hiar.io.shards import Part
from hiar.models.generator import load_generator
from hiar.stages.common import Paths
from hiar.stages.pairs import Trajectories, check_states, load_facts, load_pairs, solve


class SolvedRows:
    """Trajectories (N, S + 1, C, F, h, w) that lie nowhere, solved when they are asked for, in float32.

    ``solve`` makes those of some numbers. The rows last asked for are remembered, so that a training which takes of
    each a part after the other pays once: it should ask for all of them first.
    """

    def __init__(self, count: int, solve: Callable[[Sequence[int]], Tensor]) -> None:
        self.count, self.solve = count, solve
        self.known: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, chosen: Tensor | Part) -> Tensor:
        """Rows (n,), or a part of each, as indexing a tensor gives them."""
        rows, *part = chosen if isinstance(chosen, tuple) else (chosen,)
        numbers = rows.tolist()
        if missing := [number for number in dict.fromkeys(numbers) if number not in self.known]:
            kept = {number: self.known[number] for number in numbers if number in self.known}
            self.known = kept | dict(zip(missing, self.solve(missing), strict=True))
        return torch.stack([self.known[number][tuple(part)] for number in numbers]).float()


def open_pairs(params: Params, workspace: Path, seed: int, device: torch.device) -> Trajectories:
    """What ``artifacts/seed-S/pairs`` stands for. Where it holds no trajectories, the teacher is loaded once more.

    It is a network of its own, whole in each process: the stage's others are trained, overwritten or shared out.
    """
    paths = Paths(workspace, seed)
    if params.pairs.stored:
        return load_pairs(paths.pairs)
    _, sigmas, captions = load_facts(paths.pairs)
    teacher = load_generator(paths.teacher).to(device)

    def solved(numbers: Sequence[int]) -> Tensor:
        made = []
        for some in _batches(numbers, params.pairs.batch):
            made.append(solve(params, teacher, seed, some, [captions[number] for number in some]))
            check_states(made[-1], some)
        return torch.cat(made)

    return Trajectories(SolvedRows(len(captions), solved), sigmas, captions)


def _batches(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]
