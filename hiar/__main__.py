"""`hiar`, and `python -m hiar`."""

from __future__ import annotations

import sys
from typing import NoReturn

from hiar.cli import main


def start() -> NoReturn:
    """Run the command line in a process of its own.

    diffusers imports transformers wherever it is installed, which takes a second; only Wan's text encoder needs it, and
    imports it then.
    """
    sys.modules.setdefault("transformers", None)  # type: ignore[arg-type]
    main()


if __name__ == "__main__":
    start()
