"""Options of the command line that are checked before anything heavy is loaded."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from typer.core import TyperCommand

from hiar.errors import UserError
from hiar.io.text import one_line, split_lines

if TYPE_CHECKING:
    from hiar.config import Context, ContextLevel, Order


MOST_SEED = 2**63 - 1  # the largest seed of torch's generators, as for params.yaml's seeds
MOST_FRAMES = 10**9  # years of video; anything larger is a typing error
LONGEST_SILENCE = 86_400.0  # seconds; waits are counted in milliseconds of 32 bits
SILENCE = 600.0  # default seconds that a process may be silent, as in training


class Once(TyperCommand):
    """A command that refuses options given twice, unless they are lists: the last one would win silently."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raise UserError with all values of an option given more than once; otherwise parse as usual."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            if option.param_type_name == "option" and not option.multiple and order.count(option) > 1:
                name = max(option.opts, key=len)
                places = [place for place, word in enumerate(args) if word.split("=", 1)[0] in option.opts]
                values = [" ".join(args[place : place + (1 if "=" in args[place] else 2)]) for place in places]
                said = name if getattr(option, "is_flag", False) else ", then ".join(values)
                raise UserError(f"{name}: is given {order.count(option)} times ({said}); give it once")
        return super().parse_args(ctx, args)


def stall_of(seconds: float) -> float:
    """``--stall-seconds``. Raises UserError for an impossible wait: not a number, under a second, or over a day."""
    if not 1 <= seconds <= LONGEST_SILENCE:
        raise UserError(
            f"--stall-seconds = {seconds:g}: should be 1 to {LONGEST_SILENCE:g}; leave it out for {SILENCE:g}"
        )
    return seconds


def walk_of(order: str | None, context: str | None) -> tuple[Order | None, Context | None]:
    """The walk of ``--order`` and ``--context``, None where not given. Raises UserError for unknown ones."""
    from hiar import config

    return (
        cast("Order | None", _choice("--order", order, get_args(config.Order))),
        cast("Context | None", _choice("--context", context, get_args(config.Context))),
    )


def level_of(text: str | None) -> ContextLevel | None:
    """``--level``: one number, or several separated by commas. Raises UserError for anything but 0 to 2."""
    if text is None:
        return None
    shares = _numbers("--level", text, "is not a number; write one such as 0.85, or several like 0.8,1,1")
    if not all(0 <= share <= 2 for share in shares):
        raise UserError(f"--level = {text}: should be 0 to 2; 0 is clean, 1 the step's output level, 2 its input level")
    return shares[0] if len(shares) == 1 else shares


def levels_of(text: str | None) -> tuple[float, ...] | None:
    """``--levels``: noise levels separated by commas. Raises UserError unless they fall from 1 and stay above 0."""
    if text is None:
        return None
    levels = _numbers("--levels", text, "is not a list of numbers; write one such as 1,0.757,0.522")
    if levels[0] != 1 or not all(above > below for above, below in pairwise((*levels, 0.0))):
        raise UserError(f"--levels = {text}: should decrease from 1, pure noise, and end above 0")
    return levels


def _numbers(option: str, text: str, remedy: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} = {text}: {remedy}") from None


def prompts_of(prompt: str | None, path: Path | None) -> list[str]:
    """The prompts of ``--prompt`` or ``--prompts`` (one a line, blank lines left out).

    Runs of white space become single spaces. Raises UserError unless exactly one of the two is given, with a prompt.
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


def extended_of(prompts: list[str], path: Path) -> list[str]:
    """The prompts of ``--extended``, one for each of ``prompts``. Raises UserError if their number differs."""
    extended = prompts_of(None, path)
    if len(extended) != len(prompts):
        raise UserError(
            f"{path}: holds {len(extended)} prompts for the {len(prompts)} of --prompts; write one a line, in "
            "their order"
        )
    return extended


def size_of(text: str | None) -> tuple[int, int] | None:
    """Height and width of ``--size WIDTHxHEIGHT``. Raises UserError if malformed."""
    if text is None:
        return None
    width, _, height = text.lower().replace("×", "x").partition("x")
    if not (width.isascii() and height.isascii() and width.isdecimal() and height.isdecimal()):
        raise UserError(f"--size = {text}: is not a width and height; write them like 832x480")
    return int(height), int(width)


def _choice(option: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is not None and value not in choices:
        raise UserError(f"{option} = {value}: is not one of {', '.join(choices)}; choose one of them")
    return value
