"""`hiar live` as a process, and a viewer as a program: it receives and sends the messages that a page would."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands import environment
from websockets.sync.client import ClientConnection, connect

TOKEN = "sixteen letters!"  # the shortest allowed
PATIENCE = 240  # seconds, for a loaded machine


@contextmanager
def live(
    *checkpoints: Path, folder: Path, options: tuple[object, ...] = (), settings: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield the process and its page's address; on exit, send Ctrl-C and check that its students ended with it."""
    command = [sys.executable, "-m", "hiar", "live", *map(str, options)]
    if "--port" not in command:
        command += ["--port", "0"]
    for checkpoint in checkpoints:
        command += ["--checkpoint", str(checkpoint)]
    variables = environment() | {"OMP_NUM_THREADS": "1", "HIAR_LIVE_TOKEN": TOKEN, **(settings or {})}
    with subprocess.Popen(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            announced = re.fullmatch(r"live: (http://\S+/) \(Ctrl-C ends it\)\n", process.stdout.readline())
            assert announced is not None
            yield process, announced[1]
        finally:
            if process.poll() is None:
                students = children_of(process.pid)
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE) == 0
                assert not any(os.path.exists(f"/proc/{student}") for student in students)


class Watcher:
    """A viewer. blocks: the block messages it received, by student; videos: the bytes of each student's video."""

    def __init__(self, address: str, token: str = TOKEN, **options: Any) -> None:
        self.socket: ClientConnection = connect(
            address.replace("http", "ws") + "live",
            max_size=None,
            max_queue=None,
            open_timeout=PATIENCE,
            proxy=None,
            **options,
        )
        self.blocks: dict[int, list[dict[str, Any]]] = {}
        self.videos: dict[int, bytes] = {}
        self.send(kind="enter", token=token)

    def __enter__(self) -> Watcher:
        self.hello = self.until("hello")
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, **message: object) -> None:
        self.socket.send(json.dumps(message))

    def receive(self) -> dict[str, Any]:
        """The next message; bytes of videos that come with or before it are kept."""
        while isinstance(data := self.socket.recv(PATIENCE), bytes):
            self._keep(data)
        message: dict[str, Any] = json.loads(data)
        if message["kind"] == "block":
            self.blocks.setdefault(message["student"], []).append(message)
            fragment = self.socket.recv(PATIENCE)
            assert isinstance(fragment, bytes)
            self._keep(fragment)
        return message

    def _keep(self, data: bytes) -> None:
        self.videos[data[0]] = self.videos.get(data[0], b"") + data[1:]

    def until(self, kind: str) -> dict[str, Any]:
        """The next message of this kind; those before it are skipped."""
        while (message := self.receive())["kind"] != kind:
            pass
        return message

    def watch(self, block: int) -> None:
        """Wait until all students have made the blocks before ``block``, and report meanwhile what has been watched."""
        reported, students = -1.0, range(len(self.hello["students"]))
        while min(map(self.made, students)) < block:
            # The minimum over students: what only some have made cannot be watched, and the server does not count it.
            made = min(self.blocks[student][-1]["end"] if student in self.blocks else 0.0 for student in students)
            if made >= reported + self.hello["lead"] / 2:  # like a page, not for every block
                self.send(kind="watched", seconds=(reported := made))
            self.until("block")

    def made(self, student: int) -> int:
        return self.blocks[student][-1]["block"] + 1 if student in self.blocks else 0


def memory_of(process: int) -> int:
    """Resident bytes of a process and all its descendants."""
    import psutil

    root = psutil.Process(process)
    return sum(each.memory_info().rss for each in [root, *root.children(recursive=True)])


def children_of(process: int) -> list[int]:
    """Ids of a process's children: of a live server, its students."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(each) for each in listed if os.path.exists(f"/proc/{each}")]
