"""`python -I -S leader.py COMMAND ...`: run a command, and end its whole process group when the starting process dies.

That process holds the other end of this one's standard input, which the kernel closes however it dies; a command that
prints nothing would not notice. Nothing of the project is imported, to start fast: every command has a leader.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 25.0  # seconds between asking the group to end and killing it


def main() -> None:
    """Run the command; end with its exit code, or by the signal that ended it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)  # unlike SIG_IGN, the command does not inherit it
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, daemon=True).start()
    code = command.wait()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def _end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
