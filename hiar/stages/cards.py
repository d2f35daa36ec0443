"""The cards of students: what they were trained with."""

from __future__ import annotations

from typing import Any

from hiar.config import Params
from hiar.models.card import Card


def trained_card(card: Card, params: Params, **changes: Any) -> Card:
    """The card of a student trained with ``params``, starting from a checkpoint with ``card``."""
    trained = {"video": params.video, "schedule": params.schedule, "conventions": params.conventions}
    return card.model_copy(update=trained | {"precision": params.runtime.precision} | changes)
