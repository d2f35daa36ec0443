"""The command line. Everything heavy is imported inside the commands, so `--help` answers at once.

A user's mistake ends with one line on standard error and exit code 2, a failed run with its stage's exit code, Ctrl-C
with 130.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

from hiar.cli import experiments, videos  # each adds its commands, in the order that --help shows

from hiar.cli import live  # isort: skip
from hiar.cli import checkpoints  # isort: skip
from hiar.cli import storage, vbench  # isort: skip
from hiar.cli.app import app
from hiar.errors import RunFailed, UserError, memory_line, say
from hiar.io.files import writing

__all__ = ["app", "checkpoints", "experiments", "live", "main", "storage", "vbench", "videos"]

INTERRUPTED = 130
# The commands that keep what is done when they are interrupted; the others begin anew.
RESUMED = ("run", "stage", "sample", "score", "import-pairs", "vbench fetch", "vbench score", "storage report")


def main() -> NoReturn:
    """Run the command line and exit with the code described above."""
    try:
        with writing(Path("output")):  # covers libraries that write, too: a full disk is for the user to fix
            code = typer.main.get_command(app).main(sys.argv[1:] or ["--help"], prog_name="hiar", standalone_mode=False)
            _flush()
    except UserError as error:
        code = _fail(str(error))
    except RunFailed as error:
        code = _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        code = _fail(f"{error.format_message().rstrip('.')}; see `{_command(error)} --help`")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        line = memory_line(error)
        if line is None:
            raise
        code = _fail(line)
    if code == INTERRUPTED:
        resumed = any(" ".join(sys.argv[1:words]) in RESUMED for words in (2, 3))
        print("interrupted" + "; the same command resumes from here" * resumed, file=sys.stderr)
    sys.exit(code or 0)


def _command(error: typer.TyperException) -> str:
    """The command that was called wrongly, as it is typed."""
    context = getattr(error, "ctx", None)
    return "hiar" if context is None else str(context.command_path)


def _flush() -> None:
    """Flush the standard output; what cannot be written is dropped, or Python would try again at exit."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader closed the pipe; typer itself also exits with 1
            sys.exit(1)
        raise


def _fail(message: str, code: int = 2) -> int:
    say(message)
    return code
