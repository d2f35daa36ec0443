"""What the benchmarks' commands have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from hiar.errors import UserError
from hiar.io.outputs import is_stream, output_of


class Parser(argparse.ArgumentParser):
    """Mistakes are one line, as everywhere in the project."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def check_out(out: Path) -> None:
    """Raise UserError for a result file that cannot be written, or that what comes beside it would replace."""
    if out.suffix != ".json":
        raise UserError(f"--out = {out}: should end with .json")
    if not out.parent.exists():  # will be made
        return
    place = output_of("--out", str(out))
    if isinstance(place, int) or is_stream(place):
        raise UserError(f"--out = {out}: is a pipe or a device; name a file")
