"""Values of the command line's options that need a look before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from hiar.errors import UserError
from hiar.io.text import one_line, split_lines

if TYPE_CHECKING:
    from hiar.config import Context, Order


def walk_of(order: str | None, context: str | None) -> tuple[Order | None, Context | None]:
    """The walk of ``--order`` and ``--context``, None where not given. Raises UserError for what does not exist."""
    from hiar import config

    return (
        cast("Order | None", _choice("--order", order, get_args(config.Order))),
        cast("Context | None", _choice("--context", context, get_args(config.Context))),
    )


def prompts_of(prompt: str | None, path: Path | None) -> list[str]:
    """The prompts of ``--prompt`` or ``--prompts`` (one a line, blank lines left out).

    White space of any kind in them becomes single spaces. Raises UserError for none.
    """
    if prompt is not None and path is None:
        if not prompt.strip():
            raise UserError(f"--prompt = {prompt!r}: is empty; describe a video")
        return [one_line(prompt)]
    if path is None or prompt is not None:
        raise UserError("--prompt, --prompts: give exactly one of the two")
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; name a text file with one prompt a line") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a text file with one prompt a line") from None
    try:
        lines = split_lines(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: byte {error.start} = 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    prompts = [one_line(line) for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{path}: holds no prompt; write one a line")
    return prompts


def _choice(option: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is not None and value not in choices:
        raise UserError(f"{option} = {value}: is none of {', '.join(choices)}; choose one of them")
    return value
