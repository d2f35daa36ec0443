"""`python -m hiar.live`: the process of one student, which `hiar live` starts."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.modules.setdefault("transformers", None)  # type: ignore[arg-type]  # see hiar/__main__.py

    from hiar.live.student import main

    main()
