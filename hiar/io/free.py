"""What is free of a device's memory."""

from __future__ import annotations

import psutil
import torch

from hiar.errors import UserError

GB = 1e9


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device, also what torch keeps of a GPU's memory for tensors to come."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


def require_memory(what: str, needed: int) -> None:
    """Raise UserError when ``needed`` bytes, of ``what``, do not fit in what is free of the host's memory."""
    free = free_bytes(torch.device("cpu"))
    if needed > free:
        raise UserError(
            f"{what}: takes {needed / GB:.3g} GB of memory, {free / GB:.3g} GB are free; end other programs, or use a "
            "machine with more"
        )
