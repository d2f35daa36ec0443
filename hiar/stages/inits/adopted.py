"""Somebody else's transformer, of the base's size, in any form that `hiar import` reads."""

from __future__ import annotations

import shutil
from pathlib import Path

from hiar.stages.common import Stage
from hiar.worlds.interface import TRANSFORMER, open_world


def bring_in(work: Stage, source: Path, weights: str | None, folder: Path) -> Path:
    """Write the transformer in ``source`` into ``folder``, in the place of what an interrupted start left there.

    Returns where it lies. Raises UserError when it is none, or not whole.
    """
    shutil.rmtree(folder / TRANSFORMER, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    open_world(work.params.world).bring_in(source, weights, folder / TRANSFORMER)
    return folder / TRANSFORMER
