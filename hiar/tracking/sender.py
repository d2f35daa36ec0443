"""`python -m hiar.tracking.sender FOLDER`: send a folder of the spool to MLflow, and end when nothing is left.

Started by stages, one per folder (by a lock), at low priority. While MLflow is away it waits; if it is killed, the next
sender sends what it had not. Nothing it does twice counts twice (`hiar.tracking.client`).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from hiar.errors import without_password
from hiar.io.files import remove, write_text
from hiar.tracking import client as mlflow
from hiar.tracking.records import follow_project, records_uri
from hiar.tracking.replay import Replay, discard
from hiar.tracking.spool import TROUBLE, take_lock, waiting

NICE = 10
POLL_SECONDS = 1.0
IDLE_SECONDS = 10.0  # a sender stays so long without work, as the next stage comes soon
PATIENCE_SECONDS = 900.0  # how long to retry while the server is away, once no stage is running
LONGEST_WAIT = 15.0  # seconds between two attempts
BEAT_SECONDS = 30.0


def main() -> None:
    """Send the folder that the command line names."""
    folder = Path(sys.argv[1])
    os.nice(NICE)
    while folder.is_dir() and (lock := take_lock(folder)) is not None:
        with lock:
            left = Sender(folder).serve()
        if left or not waiting(folder):  # else a stage has just begun and started no sender, as this one had the lock
            return


class Sender:
    """Sends a folder to MLflow for as long as stages may write to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder.parents[2]
        self.client: Any = None
        self.experiments: dict[str, str] = {}  # ids by name
        self.replays: dict[Path, Replay] = {}
        self.beaten = 0.0

    def serve(self) -> bool:
        """Send until nothing is left, or it gives up; return whether something is left."""
        remove(self.folder / TROUBLE)
        useful = time.monotonic()
        wait = POLL_SECONDS
        while self.folder.is_dir():
            try:
                if self.round():
                    useful = time.monotonic()
                remove(self.folder / TROUBLE)
                wait = POLL_SECONDS
                if time.monotonic() - useful > IDLE_SECONDS:
                    return False
            except Exception as error:  # whatever MLflow, the network or a database may raise
                self._tell(error)
                if isinstance(error, ImportError):
                    return True
                wait = min(2 * wait, LONGEST_WAIT)
                if any(replay.is_written() for replay in self.replays.values()):
                    useful = time.monotonic()
                if time.monotonic() - useful > PATIENCE_SECONDS:
                    return True
            time.sleep(wait)
        return True

    def round(self) -> bool:
        """Send everything there is now; return whether there was anything to do."""
        for path in waiting(self.folder):
            if path not in self.replays:
                try:
                    self.replays[path] = Replay(path)
                except ValueError:  # a crash of the machine has lost its beginning, which says whose records they are
                    print(f"left out: {path}: begins with no record", flush=True)
                    discard(path)
        if not self.replays:
            return False
        if self.client is None:
            self.client = mlflow.connect(self._uri())
        for path, replay in sorted(self.replays.items()):
            experiment = self._experiment(replay.collection)
            if replay.advance(self.client, experiment):
                del self.replays[path]
                if not any(other.parent == replay.parent for other in self.replays.values()):
                    mlflow.unless_refused(mlflow.settle, self.client, experiment, replay.parent)
                replay.discard()
        if time.monotonic() - self.beaten > BEAT_SECONDS:
            for replay in self.replays.values():
                replay.beat(self.client)
            for experiment in self.experiments.values():
                mlflow.close_silent(self.client, experiment)
            self.beaten = time.monotonic()
        return True

    def _uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or records_uri(self.project)

    def _experiment(self, name: str) -> str:
        if name not in self.experiments:
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                follow_project(self.project)
            self.experiments[name] = mlflow.open_experiment(self.client, self.project, name)
        return self.experiments[name]

    def _tell(self, error: Exception) -> None:
        """Write an error to the log, and to a file for stages to read."""
        reason = without_password(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        print(time.strftime("%F %T"), reason, flush=True)
        if self.folder.is_dir():
            write_text(self.folder / TROUBLE, reason)


if __name__ == "__main__":
    main()
