"""The environment variables with which a launcher such as torchrun describes this process, and stale ones."""

from __future__ import annotations

import os
from typing import overload

from hiar.errors import UserError

RENDEZVOUS = "HIAR_RENDEZVOUS"  # the file in which processes that `hiar sample` has started find each other
# With these torch, accelerate and MPI tell a process that it is one of several.
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
MEETING = ("MASTER_ADDR", "MASTER_PORT")


def own_place() -> tuple[int, int] | None:
    """Rank and world size of this process; None if it is the only one, also with a world size of 1.

    Raises UserError naming the variables if no launcher would set them so.
    """
    size = _number("WORLD_SIZE", 1)
    ranks = {name: _number(name) for name in RANKS[:2]}
    for name, rank in ranks.items():
        if rank is not None and rank >= size:
            told = f"WORLD_SIZE = {size}" if "WORLD_SIZE" in os.environ else "there is no WORLD_SIZE"
            raise UserError(f"{name} = {rank}: {told}, ranks go from 0 to {size - 1}; {_remedy(name, 'WORLD_SIZE')}")
    if size == 1:
        return None
    rank = ranks["RANK"]
    if rank is None:
        raise UserError(f"WORLD_SIZE = {size}: there is no RANK beside it; {_remedy('WORLD_SIZE')}")
    if RENDEZVOUS not in os.environ:
        missing = [name for name in MEETING if not os.environ.get(name)]
        if missing:
            raise UserError(
                f"RANK = {rank}, WORLD_SIZE = {size}: are set as by a launcher, but there is no "
                f"{' and no '.join(missing)}; {_remedy('RANK', 'WORLD_SIZE')}"
            )
        if not 1 <= _number("MASTER_PORT", 0) <= 65535:
            raise UserError(f"MASTER_PORT = {os.environ['MASTER_PORT']}: is not a port; give 1 to 65535")
    return rank, size


def alone(command: str) -> None:
    """Make sure that no library takes this process for one of several because of an earlier launcher's variables.

    command: what runs as a single process, in words for the message. Raises UserError if a launcher started several.
    """
    for name in SIZES:
        if (size := _number(name, 1)) > 1:
            raise UserError(f"{name} = {size}: {command} is one process; start it without a launcher, or unset {name}")
    own_place()
    forget()


def forget() -> None:
    """Remove all of a launcher's variables from the environment, so that no library acts on them."""
    for name in list(os.environ):
        if name in (*SIZES, *RANKS, *MEETING) or name.startswith(("ACCELERATE_", "TORCHELASTIC_")):
            del os.environ[name]


@overload
def _number(name: str, default: int) -> int: ...
@overload
def _number(name: str, default: None = None) -> int | None: ...
def _number(name: str, default: int | None = None) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdecimal()) or len(value) > 9 or (name in SIZES and int(value) == 0):
        raise UserError(f"{name} = {value!r}: is not a number that a launcher sets; {_remedy(name)}")
    return int(value)


def _remedy(*names: str) -> str:
    return f"start all processes with torchrun, or unset {' and '.join(names)}"
