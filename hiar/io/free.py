"""Free memory of a device, and free space on a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import torch

from hiar.errors import UserError

GB = 1e9


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device, including the GPU memory that torch has reserved but not allocated."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


def require_memory(what: str, needed: int) -> None:
    """Raise UserError when the ``needed`` bytes for ``what`` exceed the host's free memory."""
    free = free_bytes(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{what}: takes {gigabytes(needed)} of memory, {gigabytes(free)} are free; end other programs, or use a "
            "machine with more"
        )


def free_on_disk(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not exist yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


def require_room(folder: Path, nbytes: int) -> None:
    """Raise UserError unless ``nbytes`` are free on the disk of ``folder``, which need not exist yet."""
    free = free_on_disk(folder)
    if nbytes > free:
        raise UserError(
            f"{folder}: needs {gigabytes(nbytes)}, {gigabytes(free)} are free; free some space or choose another place"
        )


def gigabytes(nbytes: float) -> str:
    """A size in gigabytes, below 0.0001 in kilobytes: three significant digits or more and no exponent."""
    if nbytes < 1e-4 * GB:
        return f"{nbytes / 1000:.3g} kB"
    return f"{nbytes / GB:.0f} GB" if nbytes >= 100 * GB else f"{nbytes / GB:.3g} GB"
