"""`python -m flows.stack up|down|status`: start, stop or inspect the stack of the project in the current folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flows.stack.control import down, status, up
from flows.stack.settings import open_stack
from hiar.errors import RunFailed, UserError


def main() -> int:
    """Do what the command line says; a user's mistake gives one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m flows.stack")
    parser.add_argument("what", choices=("up", "down", "status"))
    what = parser.parse_args().what
    try:
        stack = open_stack(Path.cwd())
        return {"up": up, "down": down, "status": status}[what](stack)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
