"""The machine's devices, each of which one stage at a time may have: locks that the kernel releases.

The locks are the machine's, not a project's or a server's: two workspaces, deployments or users of a group share them.
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
FOLDER = "HIAR_DEVICE_LOCKS"  # where the locks are
CPUS = 4  # cores at most that are devices where there is no GPU: each has a worker, of 200 MB
LOOK_SECONDS = 0.2  # between looks for free devices


def device_names() -> list[str]:
    """The devices of this machine, as CUDA_VISIBLE_DEVICES names them; where there is no GPU, its first cores.

    Read without torch, which takes seconds. Raises UserError when HIAR_DEVICES names one twice.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given := os.environ.get(DEVICES) or visible:
        names = [name.strip() for name in given.split(",") if name.strip()]
        if not names or len(set(names)) < len(names) or any("/" in name for name in names):
            raise UserError(f"{DEVICES} = {given}: should name each device once; give its names, as in 0,1,2,3")
        return names
    nodes = _nodes() if visible is None else []  # where it is empty, GPUs are there that nobody is to see
    count = sum(path.name[6:].isdecimal() for path in nodes)
    return [str(number) for number in range(count)] or [f"cpu-{core}" for core in range(min(process_cores(), CPUS))]


@contextmanager
def take_devices(count: int) -> Iterator[list[str]]:
    """Wait for ``count`` devices that nobody has, or all there are where these are fewer, and hold them in the body.

    All at once or none: stages that need several never wait for each other's.
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
    """What tells a stage which devices are its own: GPUs, unless their names begin with ``cpu``."""
    if devices[0].startswith("cpu"):
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def _try(folder: Path, names: Sequence[str], wanted: int, held: ExitStack) -> list[str]:
    """The first ``wanted`` devices that are free, locked as long as ``held`` is; fewer where there are not enough."""
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
            os.set_inheritable(file.fileno(), True)  # a stage may outlive its flow by the time that a checkpoint takes
            held.enter_context(file)
            taken.append(name)
            if len(taken) == wanted:
                break
    return taken


def _nodes() -> Iterable[Path]:
    """What Linux shows of GPUs."""
    return Path("/dev").glob("nvidia[0-9]*")


def _folder() -> Path:
    folder = Path(os.environ.get(FOLDER) or Path(tempfile.gettempdir(), f"hiar-devices-{os.geteuid()}"))
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise UserError(f"{folder}: belongs to another user; set {FOLDER} to a folder of your own")
    return folder
