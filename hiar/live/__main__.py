"""`python -m hiar.live`: the process of one student, started by `hiar live`."""

from __future__ import annotations

if __name__ == "__main__":
    from hiar.late import keep_out

    keep_out()

    from hiar.live.student import main

    main()
