"""The typer application, and the options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from hiar.options import MOST_SEED


def examples(*lines: str) -> str:
    """An epilog that shows these lines, unwrapped, at the end of a help text."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, distil, sample and score autoregressive video generators: Self-Forcing, HiAR and variants between."
    "\n\nStart with `hiar run smoke` (two minutes), then `hiar run` (the default experiment).",
)

Order = Annotated[
    str | None,
    typer.Option(help="Walk order: block_first, step_first or diagonal; default: as trained.", show_default=False),
]
Context = Annotated[
    str | None,
    typer.Option(
        help="Context of a block: finished, clean, output, input or shared; default: as trained.", show_default=False
    ),
]
Level = Annotated[
    str | None,
    typer.Option(
        metavar="C[,C...]",
        help="Noise level of output context, from 0 (clean) through 1 (the step's output level) to 2 (its input "
        "level); one number, or one for each step but the last; default: as trained.",
        show_default=False,
    ),
]
Fp8 = Annotated[bool, typer.Option("--fp8", help="Compute linear layers in fp8; needs a GPU from Hopper on.")]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The same seed, prompts and walk give the same videos.")]
