"""The application that the commands are parts of, and the options that several of them share."""

from __future__ import annotations

from typing import Annotated

import typer

from hiar.options import MOST_SEED


def examples(*lines: str) -> str:
    """Lines to show as they are at the end of a help text."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, distil, sample and score autoregressive video generators: Self-Forcing, HiAR and what lies between."
    "\n\nStart with `hiar run smoke` (two minutes), then `hiar run` (the default experiment).",
)

Order = Annotated[
    str | None, typer.Option(help="block_first, step_first or diagonal; default: as trained.", show_default=False)
]
Context = Annotated[
    str | None, typer.Option(help="finished, clean, output, input or shared; default: as trained.", show_default=False)
]
Level = Annotated[
    str | None,
    typer.Option(
        metavar="C[,C...]",
        help="Of output context: its noise, from 0, clean, over 1, the step's output level, to 2, its input level, or "
        "one number for each step but the last; default: as trained.",
        show_default=False,
    ),
]
Fp8 = Annotated[bool, typer.Option("--fp8", help="Linear layers in eight-bit numbers, on GPUs from Hopper on.")]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The same seed, prompts and walk give the same videos.")]
