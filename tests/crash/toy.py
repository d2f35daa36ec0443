"""A stage of half a second: ``toy.py FOLDER MODE``, resuming well or, for MODE "forgetful", badly."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from hiar.io.artifacts import unfinished, write_manifest
from hiar.io.files import write_text

STEPS = 40

folder, mode = Path(sys.argv[1]), sys.argv[2]
with unfinished(folder, {}) as partial:
    state = partial / ".state"
    done = int(state.read_text()) if state.exists() else 0
    history = [] if mode == "forgetful" else list(range(done))
    helper = subprocess.Popen(["sleep", "60"])  # would survive if only its parent were killed
    with Path("helpers.txt").open("a") as file:
        file.write(f"{helper.pid}\n")
    for step in range(done, STEPS):
        history.append(step)
        write_text(state, str(step + 1))
        time.sleep(0.01)
    helper.kill()
    helper.wait()
    write_text(partial / "history.txt", " ".join(map(str, history)))
    write_manifest(partial, "toy")
