"""The state of a training run, enough for an exact resume: each process writes its part while training goes on.

All randomness of training is a function of the step, so there is no generator state to keep. Sharded tensors are saved
in shards and read by rows, so that a run may resume with another number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hiar.errors import UserError
from hiar.io.files import remove
from hiar.io.process_group import ALONE, Ranks
from hiar.io.states import (
    Index,
    Layout,
    StoredState,
    check_files,
    forget_older,
    layout_of,
    newest,
    publish,
    read_index,
    temporary_state,
    write_part,
)
from hiar.training.parallel import local, part_of, rows_of, shares
from hiar.training.role import HOST, Role, move_states

MEMORY = "memory/"  # tensors that a step keeps for later ones

Curve = list[dict[str, float]]


class _Writing(NamedTuple):
    """A state being written. part: the SHA-256 of this process's file, once it is on the disk."""

    step: int
    curve: Curve
    layouts: dict[str, Layout]
    part: Future[str]


class Saving:
    """Writes the states of a run in the background, one at a time.

    The newest ``keep`` stay, and each one after a multiple of ``milestone`` updates.
    Processes that share the roles call the methods together.
    """

    def __init__(
        self,
        folder: Path,
        roles: Mapping[str, Role],
        memory: Mapping[str, Tensor],
        keep: int = 1,
        milestone: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder, self.roles, self.memory, self.ranks = folder, roles, memory, ranks
        self.keep, self.milestone = keep, milestone
        self.writer = ThreadPoolExecutor(1, "state")
        self.under_way: _Writing | None = None

    def begin(self, step: int, curve: Sequence[dict[str, float]]) -> None:
        """Copy the state after ``step`` updates to the host and start writing it, once the previous one is written."""
        self.finish()
        tensors, layouts = {}, {}
        for name, value in _entries(self.roles, self.memory):
            rows = shares(value)
            layouts[name] = layout_of(value, rows)
            if self.ranks.leads if rows is None else rows[self.ranks.rank]:
                tensors[name] = local(value).detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        place = temporary_state(self.folder, step)
        part = self.writer.submit(write_part, place, self.ranks.rank, tensors)
        self.under_way = _Writing(step, list(curve), layouts, part)

    def written(self) -> bool:
        """Whether this process has written its part of a state, or failed to, so that ``finish`` would not wait."""
        return self.under_way is not None and self.under_way.part.done()

    def finish(self) -> None:
        """Wait until the state being written, if any, is complete and has its name; then delete those that are too old.

        Raises UserError on all processes when one cannot write its part; the states before it stay.
        """
        if self.under_way is None:
            return
        (step, curve, layouts, part), self.under_way = self.under_way, None
        digest = b""
        try:
            with self.ranks.agreed():
                digest = bytes.fromhex(part.result())
            own = torch.frombuffer(bytearray(digest), dtype=torch.uint8).to(self.ranks.device)
            files = [bytes(row.tolist()).hex() for row in self.ranks.gather(own)]
            with self.ranks.agreed():
                if self.ranks.leads:
                    publish(self.folder, Index(step=step, curve=curve, files=files, tensors=layouts))
                    forget_older(self.folder, self.keep, self.milestone)
        except UserError:
            if self.ranks.leads:  # the disk may be full
                remove(temporary_state(self.folder, step))
            raise

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the state being written; after an error only if there is one process: others may not take part."""
        try:
            if kind is None or self.ranks.size == 1:
                self.finish()
        finally:
            self.writer.shutdown()


def load_state(
    folder: Path, roles: Mapping[str, Role], memory: dict[str, Tensor], ranks: Ranks = ALONE
) -> tuple[int, Curve]:
    """Restore the newest state into ``roles`` and ``memory``; returns its step and curve, (0, []) if there is none.

    Before anything is loaded, processes share the check of the files; each then reads the part it holds of the tensors.
    Raises UserError when the state is damaged, is of other networks, or is not the same for all processes.
    """
    place = newest(folder)
    with ranks.agreed():
        index = None if place is None else read_index(place)
    _check_alike(folder, 0 if index is None else index.step, ranks)
    if place is None or index is None:
        return 0, []
    with ranks.agreed():
        check_files(place, index, range(ranks.rank, len(index.files), ranks.size))
    with ranks.agreed():
        stored = StoredState(place, index)
        try:
            _check_names(index.tensors, roles)
            _restore(stored, roles, memory)
        except (RuntimeError, ValueError, LookupError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{place}: belongs to other networks or optimisers ({reason}); remove this state and train from scratch"
            ) from None
    return index.step, index.curve


def _check_alike(folder: Path, step: int, ranks: Ranks) -> None:
    """Raise UserError on all processes unless they all see the same state."""
    steps = ranks.gather(torch.tensor(step, device=ranks.device)).tolist()
    for rank, other in enumerate(steps):
        if other != steps[0]:
            raise UserError(
                f"{folder}: process {rank} resumes at step {other}, process 0 at {steps[0]}; start all in one "
                "shared folder"
            )


def _entries(roles: Mapping[str, Role], memory: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a state, in an order that is the same in all processes."""
    for name, value in memory.items():
        yield f"{MEMORY}{name}", value
    yield from _weights(roles)
    for name, role in roles.items():
        for number, optimizer in enumerate(role.optimizers):
            for parameter, state in sorted(optimizer.state_dict()["state"].items()):
                for key, value in state.items():
                    yield f"{name}/optimizer/{number}/{parameter}/{key}", value


def _weights(roles: Mapping[str, Role]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of networks and their averages, which may also be written to."""
    for name, role in roles.items():
        networks: dict[str, nn.Module | None] = {"module": role.module, "average": role.average}
        for kind, network in networks.items():
            for key, value in (network.state_dict() if network is not None else {}).items():
                yield f"{name}/{kind}/{key}", value


def _optimizers(roles: Mapping[str, Role]) -> Iterator[tuple[str, Role, torch.optim.Optimizer, list[Tensor]]]:
    """For each optimiser: the prefix of its names in a state, its role, itself, and its parameters in their order."""
    for name, role in roles.items():
        for number, optimizer in enumerate(role.optimizers):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            yield f"{name}/optimizer/{number}/", role, optimizer, parameters


def _check_names(layouts: Mapping[str, Layout], roles: Mapping[str, Role]) -> None:
    """Raise ValueError, or IndexError, at the first tensor that is missing, unexpected, or of another shape or type."""
    left = {name for name in layouts if not name.startswith(MEMORY)}
    for name, own in _weights(roles):
        if name not in layouts:
            raise ValueError(f"{name} is missing")
        _check_layout(name, layouts[name], own)
        left.remove(name)
    for prefix, _, _, parameters in _optimizers(roles):
        fields: dict[int, set[str]] = {}
        for name, key in _under(layouts, prefix).items():
            place, field = key.split("/")
            fields.setdefault(int(place), set()).add(field)
            if layouts[name].shape:
                _check_layout(name, layouts[name], parameters[int(place)])
            left.remove(name)
        complete = set().union(*fields.values())
        for number, found in fields.items():
            if missing := complete - found:
                raise ValueError(f"{prefix}{number}/{min(missing)} is missing")
    if left:
        raise ValueError(f"{min(left)} belongs to none of {', '.join(roles)}")


def _check_layout(name: str, found: Layout, own: Tensor) -> None:
    wanted = layout_of(own, None)
    if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        raise ValueError(f"{name} is {found.dtype} {found.shape}, and not {wanted.dtype} {wanted.shape}")


@torch.no_grad()
def _restore(stored: StoredState, roles: Mapping[str, Role], memory: dict[str, Tensor]) -> None:
    """Load a state whose names have been checked, one tensor at a time."""
    for name, own in _weights(roles):
        local(own).copy_(stored.read(name, rows_of(own)))
    memory.update({key: stored.read(name) for name, key in _under(stored.layouts, MEMORY).items()})
    for prefix, role, optimizer, parameters in _optimizers(roles):
        states: dict[int, dict[str, Tensor]] = {}
        for name, key in _under(stored.layouts, prefix).items():
            place, field = key.split("/")
            like = parameters[int(place)]
            sharded = bool(stored.layouts[name].shape)
            value = part_of(like, stored.read(name, rows_of(like))) if sharded else stored.read(name)
            states.setdefault(int(place), {})[field] = value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        if role.offloaded:
            move_states(optimizer, HOST)


def _under(layouts: Mapping[str, Layout], prefix: str) -> dict[str, str]:
    """The names with this prefix, and each without it."""
    return {name: name.removeprefix(prefix) for name in layouts if name.startswith(prefix)}
