"""Going on from the training state of a run that was begun with other settings (`--restart-from`)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.io.artifacts import write_json
from hiar.io.files import atomic_file
from hiar.training.checkpoint import STATE

TRAINING = ".training"  # where a training run keeps its state, in the folder that it fills
ORIGIN = "restarted_from.json"  # beside the state, where it is another run's


@contextmanager
def opened_state(source: Path | None) -> Iterator[BufferedReader | None]:
    """The training state in a folder of unfinished work, open: also should the folder itself now be set aside.

    Raises UserError where there is none.
    """
    if source is None:
        yield None
        return
    path = source / TRAINING / STATE
    if not path.is_file():
        raise UserError(
            f"--restart-from = {source}: holds no training state ({TRAINING}/{STATE}); name a folder such as "
            "teacher.aside-1.partial that an interrupted stage left"
        )
    with path.open("rb") as file:
        yield file


def take_up(state: BufferedReader, source: Path, folder: Path) -> None:
    """Let training in ``folder`` go on from ``state``; once it has, a repetition goes on from its own.

    Raises UserError when there is a state of another origin already.
    """
    origin = {"folder": source.name, "sha256": hashlib.file_digest(state, "sha256").hexdigest()}
    own = folder / TRAINING / STATE
    if own.exists():
        known = restarted_from(folder)
        if known is None or known["sha256"] != origin["sha256"]:
            raise UserError(
                f"--restart-from = {source}: {folder} has a state of its own to go on from; leave the option out, "
                "or move that folder away"
            )
        return
    write_json(own.with_name(ORIGIN), origin)
    state.seek(0)
    with atomic_file(own) as temporary, temporary.open("wb") as file:
        shutil.copyfileobj(state, file)


def restarted_from(folder: Path) -> dict[str, Any] | None:
    """Where the training in ``folder`` went on from, if it is another run's state."""
    path = folder / TRAINING / ORIGIN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
