"""`hiar`, and `python -m hiar`."""

from __future__ import annotations

from typing import NoReturn

from hiar.cli import main
from hiar.late import keep_out


def start() -> NoReturn:
    """Run the command line, with slow libraries kept out."""
    keep_out()
    main()


if __name__ == "__main__":
    start()
