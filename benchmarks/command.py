"""What the benchmarks' commands have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hiar.errors import UserError
from hiar.io.files import write_json, write_text
from hiar.io.outputs import is_stream, output_of


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as everywhere in the project."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def check_out(out: Path) -> None:
    """Raise UserError for a result file that cannot be written, or that the files beside it would replace."""
    if out.suffix != ".json":
        raise UserError(f"--out = {out}: should end with .json")
    if not out.parent.exists():  # is created later
        return
    place = output_of("--out", str(out))
    if isinstance(place, int) or is_stream(place):
        raise UserError(f"--out = {out}: is a pipe or a device; name a file")


def measure_students(
    name: str,
    description: str | None,
    bench: Callable[[list[Path], int, int, int], dict[str, Any]],
    page: Callable[[dict[str, Any]], str],
    line: list[str] | None,
    *,
    videos: int,
    frames: int,
    frames_help: str,
) -> int:
    """Run a command that measures videos of trained students and writes the result; returns its exit code.

    bench(checkpoints, videos, frames, seed): the contents of the result file. page(result): the same as Markdown.
    """
    parser = Parser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, action="append", help="a trained student; repeat for several"
    )
    parser.add_argument("--videos", type=int, default=videos)
    parser.add_argument("--frames", type=int, default=frames, help=frames_help)
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noise")
    parser.add_argument("--out", type=Path, required=True, help="NAME.json; NAME.md is written beside it")
    try:
        options = parser.parse_args(line)
        check_out(options.out)
        if options.videos < 2:
            raise UserError(f"--videos = {options.videos}: has no standard error; give at least 2")
        result = bench(options.checkpoint, options.videos, options.frames, options.seed)
        write_json(options.out, result)
        write_text(options.out.with_suffix(".md"), page(result))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(page(result))
    return 0
