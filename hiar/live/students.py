"""Students as `hiar live` sees them: their checkpoints, their processes, and the last minute of each."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hiar.errors import UserError
from hiar.live.wire import Message, command_line, read_message
from hiar.models.card import Card, load_card
from hiar.worlds.interface import World, open_world

KEPT = 60.0  # seconds that can be saved
MOST = 4  # students side by side
ENDING_SECONDS = 10.0  # to finish the current block before its process is killed


class Piece(NamedTuple):
    """A finished block. start, end: seconds on the time line. data: its fragment of the video."""

    start: float
    end: float
    message: Message
    data: bytes


@dataclass
class Student:
    """One student on the page. ``line``: why it has stopped, None while it works."""

    name: str
    checkpoint: Path
    card: Card
    process: asyncio.subprocess.Process | None = None
    device: str = ""
    content: str = ""  # hash of the files of the checkpoint that its process has loaded
    header: bytes = b""
    pictures: tuple[int, int] = (0, 0)  # in a video's first block, and in every other one
    pieces: deque[Piece] = field(default_factory=deque)
    made: float = 0.0
    line: str | None = None

    @property
    def codec(self) -> str:
        """The video's codec string for browsers, with the profile and level of its header."""
        place = self.header.index(b"avcC") + 5
        return f"avc1.{self.header[place : place + 3].hex()}"

    def tell(self, command: Message) -> None:
        """Send a command to its process, if that is running."""
        if self.line is None and self.process is not None and self.process.stdin is not None:
            self.process.stdin.write(command_line(command))

    def keep(self, message: Message, data: bytes, fps: float) -> Piece:
        """Store the next block, and drop those too old to be saved."""
        piece = Piece(self.made, self.made + message["pictures"] / fps, message, data)
        self.pieces.append(piece)
        self.made = piece.end
        while self.pieces[0].end < self.made - KEPT:
            self.pieces.popleft()
        return piece


def find_students(checkpoints: Sequence[Path]) -> list[Student]:
    """The students of checkpoint folders. Raises UserError if one is no student or they do not fit side by side."""
    if len(checkpoints) > MOST:
        raise UserError(f"--checkpoint: is given {len(checkpoints)} times; give up to {MOST} side by side")
    cards = [load_card(folder) for folder in checkpoints]
    for folder, card in zip(checkpoints, cards, strict=True):
        if card.stage == "teacher":
            raise UserError(
                f"--checkpoint = {folder}: is a teacher, which makes whole clips; name an init or a distilled student"
            )
        for what, own, other in (
            ("world", card.world, cards[0].world),
            ("video.block", card.video.block, cards[0].video.block),
        ):
            if own != other:
                raise UserError(
                    f"--checkpoint = {folder}: its {what} is not that of {checkpoints[0]}; show it on a page of its own"
                )
    names = [folder.resolve().name for folder in checkpoints]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in checkpoints]
    return [Student(*each) for each in zip(names, checkpoints, cards, strict=True)]


def world_of(students: Sequence[Student]) -> World:
    """The world that all students share."""
    return open_world(students[0].card.world)


async def start_all(students: Sequence[Student], crf: int, params: Path) -> None:
    """Start all processes in parallel and wait until they are ready. Raises UserError if one cannot start."""
    errors = await asyncio.gather(
        *(_start(student, number, crf, params) for number, student in enumerate(students)), return_exceptions=True
    )
    for error in errors:
        if error is not None:
            raise error


async def _start(student: Student, number: int, crf: int, params: Path) -> None:
    command = [sys.executable, "-m", "hiar.live", "--checkpoint", str(student.checkpoint), "--number", str(number)]
    command += ["--crf", str(crf), "--params", str(params)]
    pipe = asyncio.subprocess.PIPE
    student.process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert student.process.stdout is not None
    said = await read_message(student.process.stdout)
    if said is None or said[0]["kind"] != "ready":
        raise UserError(said[0]["line"] if said else f"{student.checkpoint}: its process ended before it was ready")
    message, student.header = said
    student.device, student.content = message["device"], message["content"]
    student.pictures = tuple(message["pictures"])


async def follow(student: Student, heard: Callable[[Message, bytes], Awaitable[None]]) -> None:
    """Pass on a student's messages until its process ends; then set its ``line``."""
    assert student.process is not None and student.process.stdout is not None
    while said := await read_message(student.process.stdout):
        if said[0]["kind"] == "broken":
            student.line = said[0]["line"]
        else:
            await heard(*said)
    student.line = student.line or f"{student.name}: its process has ended; start `hiar live` again"


async def end_all(students: Sequence[Student]) -> None:
    """End all processes by closing their inputs; kill those that take too long."""
    await asyncio.gather(*(_end(student.process) for student in students if student.process is not None))


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), ENDING_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
