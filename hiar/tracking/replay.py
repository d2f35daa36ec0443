"""One spool file, read from its beginning and sent to one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hiar.io.files import remove
from hiar.tracking import client as mlflow
from hiar.tracking.spool import is_written, kept

CHUNK = 2**20  # bytes read at a time
SYSTEM_SECONDS = 5.0  # between samples of processor, memory, disk, network and GPUs


def discard(path: Path) -> None:
    """Remove a spool file and, first, the folder of its files."""
    remove(kept(path))
    remove(path)


def _event(line: bytes) -> dict[str, Any]:
    """The event of a line; none where a crash of the machine has left something else, which would block the rest."""
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        print(f"left out: a line of {len(line)} bytes that is no record", flush=True)
        return {}
    return event


class Replay:
    """A spool file and how much of it is sent. ``parent``: the id of its experiment's run, once that is open.

    Raises ValueError if the file does not begin with a record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            first = json.loads(file.readline())
            self.run: dict[str, Any] = first["run"] | {"began": first["time"]}
            self._offset = file.tell()
        self.parent = ""
        self._id = ""
        self._was_there = False
        self._ended = False
        self._known: dict[str, dict[int, float]] = {}  # by metric: the values that the run already had, by step
        self._points: list[tuple[str, float, int, int]] = []
        self._monitor: Any = None

    @property
    def collection(self) -> str:
        return str(self.run["collection"])

    def is_written(self) -> bool:
        """Whether its stage is alive."""
        return is_written(self.path)

    def advance(self, client: Any, experiment: str) -> bool:
        """Send what is new; return whether the file is done. Raises what MLflow raises; call it again then."""
        self._points.clear()  # left from a failed attempt
        alive = self.is_written()  # before reading, so that a dead stage's file is read to its end
        if not self._id:
            self.parent = mlflow.open_parent(client, experiment, self.run)
            self._id, self._was_there = mlflow.open_run(client, experiment, self.parent, self.run)
            self.beat(client)
        while lines := self._read():
            for line in lines:
                self._send(client, experiment, _event(line))
            self._flush(client)
            self._offset += sum(map(len, lines))
        if alive:
            return False
        self._stop_watching()
        if not self._ended:
            mlflow.unless_refused(client.set_terminated, self._id, "KILLED")
        return True

    def beat(self, client: Any) -> None:
        """Write the run's heartbeat if its stage is alive, and have the machine's load recorded in it."""
        if self._id and not self._ended and self.is_written():
            mlflow.unless_refused(mlflow.beat, client, self._id, self.parent)
            self._watch(client)

    def discard(self) -> None:
        """Remove the file and its folder, once all is sent."""
        discard(self.path)

    def _read(self) -> list[bytes]:
        """The next complete lines, without one that a crash cut off."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            return [line for line in file.readlines(CHUNK) if line.endswith(b"\n")]

    def _send(self, client: Any, experiment: str, event: dict[str, Any]) -> None:
        if "metrics" in event:
            self._points += [
                (name, value, event["time"], event["step"])
                for name, value in event["metrics"].items()
                if event["step"] not in self._before(client, name)
            ]
        elif "figures" in event:
            self._points += [
                (name, value, event["time"], event["step"])
                for name, value in event["figures"].items()
                if self._before(client, name).get(event["step"]) != value
            ]
        elif "tags" in event:
            for key, value in event["tags"].items():
                mlflow.unless_refused(client.set_tag, self._id, key, value)
                if key == "content":
                    mlflow.unless_refused(mlflow.link_to_maker, client, experiment, self._id, value)
        elif "model" in event:
            mlflow.unless_refused(mlflow.register, client, self._id, self.run, event["model"], event["aliases"])
        elif "artifact" in event:
            file = kept(self.path) / event["artifact"]
            if file.exists():
                mlflow.unless_refused(mlflow.log_file, client, self._id, file)
        elif "end" in event:
            self._flush(client)
            self._stop_watching()
            self._ended = True
            mlflow.unless_refused(client.set_terminated, self._id, event["end"], event["time"])

    def _flush(self, client: Any) -> None:
        points, self._points = self._points, []
        if points:
            mlflow.unless_refused(mlflow.log_points, client, self._id, points)

    def _before(self, client: Any, name: str) -> dict[int, float]:
        """A metric's values, by step, that the run had before this file: from another stage, or another sender."""
        if not self._was_there:
            return {}
        if name not in self._known:
            self._known[name] = mlflow.history(client, self._id, name)
        return self._known[name]

    def _watch(self, client: Any) -> None:
        """Start MLflow's thread that records the machine's load, again if it ended because the server was away."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if self._monitor is not None and self._monitor._process is not None and self._monitor._process.is_alive():
            return
        self._monitor = SystemMetricsMonitor(
            self._id, sampling_interval=SYSTEM_SECONDS, resume_logging=True, tracking_uri=client.tracking_uri
        )
        self._monitor.start()

    def _stop_watching(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
