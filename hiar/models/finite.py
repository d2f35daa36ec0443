"""Non-finite weights are neither saved nor loaded: everything made with them is worthless."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hiar.errors import UserError


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise UserError naming ``what`` and its first tensor that holds NaN or an infinity."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            broken = int((~tensor.isfinite()).sum())
            raise UserError(
                f"{what}: {name}: {broken} of {tensor.numel()} values are not finite, as after training that "
                "overflowed; train again with a lower learning rate"
            )
