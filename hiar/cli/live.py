"""The command that shows students live."""

from __future__ import annotations

import os
import sys
import webbrowser
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hiar.cli.app import Seed, app, examples
from hiar.errors import UserError
from hiar.io.launcher import alone
from hiar.options import Once, prompts_of

SHORTEST_LEAD, LONGEST_LEAD = 0.1, 20.0  # seconds


@app.command(
    cls=Once,
    epilog=examples(
        "hiar live --checkpoint artifacts/seed-0/distill/hiar --checkpoint artifacts/seed-0/distill/self-forcing",
        'hiar live --checkpoint artifacts/seed-0/distill/hiar --prompt "a red disc moves" --seed 3 --lead 1',
    ),
)
def live(
    checkpoint: Annotated[
        list[Path],
        typer.Option(metavar="DIR", help="Folder of an init or a distilled student; up to four, shown side by side."),
    ],
    prompt: Annotated[
        str | None, typer.Option(help="What the video shows at first; default: one of the world's.", show_default=False)
    ] = None,
    seed: Seed = 0,
    host: Annotated[str, typer.Option(help="Address to listen on; any beyond this machine needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8765,
    lead: Annotated[float, typer.Option(help="Seconds of video generated ahead of what viewers watch, 0.1 to 20.")] = (
        1.5
    ),
    renew: Annotated[
        bool,
        typer.Option(
            "--renew", help="Recompute earlier blocks' context when the prompt changes: it takes effect sooner."
        ),
    ] = False,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Watch endless videos of students, and change the prompt.

    Students run side by side on the same prompt, seed and noise, and pause while nobody watches. A new prompt applies
    from the first block that no student has begun. Ctrl-C ends the command.
    """
    if not SHORTEST_LEAD <= lead <= LONGEST_LEAD:
        raise UserError(f"--lead = {lead:g}: should be {SHORTEST_LEAD:g} to {LONGEST_LEAD:g} seconds")
    text = None if prompt is None else prompts_of(prompt, None)[0]
    alone("hiar live")

    from hiar.live.serving import serve

    try:
        serve(checkpoint, text, seed, host, port, lead, partial(_announce, browser), renew)
    except KeyboardInterrupt:
        return  # the normal end


def _announce(browser: bool, address: str) -> None:
    print(f"live: {address} (Ctrl-C ends it)", flush=True)
    # On a machine without a screen the standard library would start a text browser in this terminal.
    if browser and (sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ)):
        webbrowser.open(address)
