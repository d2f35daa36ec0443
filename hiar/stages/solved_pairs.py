"""The teacher's trajectories for training: from the disk or, if none are stored, solved when they are drawn.

Both are the same trajectories up to rounding, since each depends on its number alone.
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
    """Trajectories (N, S + 1, C, F, h, w) that are not stored but solved when they are read, in float32.

    ``solve(numbers)`` makes trajectories. The rows last read are cached, so that reading parts of a batch one after the
    other solves it once; its rows should all be read together first.
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
    """The trajectories of ``artifacts/seed-S/pairs``. If it stores none, another copy of the teacher solves them.

    That copy is unsharded in each process: the stage's other networks are trained, overwritten or sharded.
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
