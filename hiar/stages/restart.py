"""Resume training from the state of a run that was begun with other settings (`--restart-from`)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.io.files import atomic_file, write_json
from hiar.io.states import INDEX, give_name, newest, parse_index, state_path, temporary_state

TRAINING = ".training"  # where a training run keeps its states, in the folder that it fills
ORIGIN = "restarted_from.json"  # beside the states, if they continue another run's


@contextmanager
def opened_state(source: Path | None) -> Iterator[dict[str, BufferedReader] | None]:
    """The open files of a training state, which stay readable if their folder is then set aside; None for no source.

    source: a folder of unfinished work, whose newest state is meant, or a state itself. Raises UserError if there is
    none.
    """
    if source is None:
        yield None
        return
    place = source if (source / INDEX).is_file() else newest(source / TRAINING)
    if place is None or not (place / INDEX).is_file():
        raise UserError(
            f"--restart-from = {source}: holds no training state ({TRAINING}/state-*); name a folder such as "
            "teacher.aside-1.partial that an interrupted stage left"
        )
    with ExitStack() as stack:
        yield {path.name: stack.enter_context(path.open("rb")) for path in sorted(place.iterdir())}


def take_up(state: Mapping[str, BufferedReader], source: Path, folder: Path) -> None:
    """Copy ``state`` into ``folder``, so that training resumes from it; if that was done before, change nothing.

    Raises UserError if ``folder`` has states of another origin already.
    """
    text = state[INDEX].read()
    origin = {"folder": source.name, "sha256": hashlib.sha256(text).hexdigest()}
    training = folder / TRAINING
    if newest(training) is not None:
        known = restarted_from(folder)
        if known is None or known["sha256"] != origin["sha256"]:
            raise UserError(
                f"--restart-from = {source}: {folder} has its own state to resume from; leave the option out, "
                "or move that folder away"
            )
        return
    step = parse_index(text, source).step
    write_json(training / ORIGIN, origin)
    temporary = temporary_state(training, step)
    for name, file in state.items():
        with atomic_file(temporary / name) as copy, copy.open("wb") as target:
            file.seek(0)
            shutil.copyfileobj(file, target)
    give_name(temporary, state_path(training, step))


def restarted_from(folder: Path) -> dict[str, Any] | None:
    """The state of another run that the training in ``folder`` began with, as folder and SHA-256; None if none."""
    path = folder / TRAINING / ORIGIN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
