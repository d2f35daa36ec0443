"""Exclusive use of the machine's devices by stages, through locks that the kernel releases.

The locks belong to the machine and user, not to a project or server: several workspaces and deployments share them.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from hiar.errors import UserError
from hiar.io.cores import process_cores
from hiar.io.files import writing

DEVICES = "HIAR_DEVICES"  # names of this machine's devices, as in 0,1,2,3
FOLDER = "HIAR_DEVICE_LOCKS"  # folder of the locks
CPUS = 4  # without a GPU at most so many cores count as devices: each has a worker, of 200 MB
LOOK_SECONDS = 0.2  # between attempts to get devices


def device_names() -> list[str]:
    """The devices of this machine, as CUDA_VISIBLE_DEVICES names them; without a GPU, its first cores.

    torch is not used, as it takes seconds to load. Raises UserError unless HIAR_DEVICES names each device once.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given := os.environ.get(DEVICES) or visible:
        names = [name.strip() for name in given.split(",") if name.strip()]
        if not names or len(set(names)) < len(names) or any("/" in name for name in names):
            raise UserError(f"{DEVICES} = {given}: should list each device once, as in 0,1,2,3")
        return names
    nodes = _nodes() if visible is None else []  # if it is empty, GPUs are hidden on purpose
    count = sum(path.name[6:].isdecimal() for path in nodes)
    return [str(number) for number in range(count)] or [f"cpu-{core}" for core in range(min(process_cores(), CPUS))]


@contextmanager
def take_devices(count: int) -> Iterator[list[str]]:
    """Wait for ``count`` free devices, or for all if there are fewer, and hold them during the body.

    All are taken at once or none, so that stages which need several cannot deadlock.
    """
    names = device_names()
    wanted = min(count, len(names))
    folder = _folder()
    while True:
        with ExitStack() as held:
            taken = _try(folder, names, wanted, held)
            if len(taken) == wanted:
                yield taken
                return
        time.sleep(LOOK_SECONDS)


def environment_on(devices: Sequence[str]) -> dict[str, str]:
    """The variables that restrict a stage to its devices: GPUs, unless their names begin with ``cpu``."""
    if devices[0].startswith("cpu"):
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _try(folder: Path, names: Sequence[str], wanted: int, held: ExitStack) -> list[str]:
    """The first ``wanted`` free devices, locked until ``held`` closes; fewer if there are not enough."""
    taken: list[str] = []
    with writing(folder), (folder / "choosing.lock").open("ab") as choosing:
        fcntl.flock(choosing, fcntl.LOCK_EX)  # one at a time, so that two do not each take half of what both need
        for name in names:
            file: IO[bytes] = (folder / f"{name}.lock").open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            os.set_inheritable(file.fileno(), True)  # a stage may outlive its flow while it saves a checkpoint
            held.enter_context(file)
            taken.append(name)
            if len(taken) == wanted:
                break
    return taken


def _nodes() -> Iterable[Path]:
    """Linux's device files of GPUs."""
    return Path("/dev").glob("nvidia[0-9]*")


def _folder() -> Path:
    folder = Path(os.environ.get(FOLDER) or Path(tempfile.gettempdir(), f"hiar-devices-{os.geteuid()}"))
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise UserError(f"{folder}: belongs to another user; set {FOLDER} to a folder of your own")
    return folder
