"""Students as `hiar live` sees them: what their checkpoints are, their processes, and the last minute of each."""

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
ENDING_SECONDS = 10.0  # that a block under way may take


class Piece(NamedTuple):
    """A block as it was made. start, end: seconds on the time line. data: its fragment of the video."""

    start: float
    end: float
    message: Message
    data: bytes


@dataclass
class Student:
    """One of those side by side; ``line`` says why it makes nothing any more."""

    name: str
    checkpoint: Path
    card: Card
    process: asyncio.subprocess.Process | None = None
    device: str = ""
    header: bytes = b""
    pictures: tuple[int, int] = (0, 0)  # of the first block of a video, and of every other one
    pieces: deque[Piece] = field(default_factory=deque)
    made: float = 0.0
    line: str | None = None

    @property
    def codec(self) -> str:
        """What a browser is told of the video: the profile and level that are in its header."""
        place = self.header.index(b"avcC") + 5
        return f"avc1.{self.header[place : place + 3].hex()}"

    def tell(self, command: Message) -> None:
        """Give its process a command, if there is one."""
        if self.line is None and self.process is not None and self.process.stdin is not None:
            self.process.stdin.write(command_line(command))

    def keep(self, message: Message, data: bytes, fps: float) -> Piece:
        """Note the next block, and forget what is older than can be saved."""
        piece = Piece(self.made, self.made + message["pictures"] / fps, message, data)
        self.pieces.append(piece)
        self.made = piece.end
        while self.pieces[0].end < self.made - KEPT:
            self.pieces.popleft()
        return piece


def find_students(checkpoints: Sequence[Path]) -> list[Student]:
    """The students of checkpoint folders. Raises UserError when they are not, or cannot be shown side by side."""
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
                    f"--checkpoint = {folder}: has another {what} than {checkpoints[0]}; show it on a page of its own"
                )
    names = [folder.resolve().name for folder in checkpoints]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in checkpoints]
    return [Student(*each) for each in zip(names, checkpoints, cards, strict=True)]


def world_of(students: Sequence[Student]) -> World:
    """The world that all of them show."""
    return open_world(students[0].card.world)


async def start_all(students: Sequence[Student], crf: int, params: Path) -> None:
    """Start their processes, side by side, and wait until they are ready. Raises UserError when one cannot be."""
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
    student.device, student.pictures = message["device"], tuple(message["pictures"])


async def follow(student: Student, heard: Callable[[Message, bytes], Awaitable[None]]) -> None:
    """Pass on what a student says until its process ends; then ``line`` says why."""
    assert student.process is not None and student.process.stdout is not None
    while said := await read_message(student.process.stdout):
        if said[0]["kind"] == "broken":
            student.line = said[0]["line"]
        else:
            await heard(*said)
    student.line = student.line or f"{student.name}: its process has ended; start `hiar live` again"


async def end_all(students: Sequence[Student]) -> None:
    """End their processes, which end by themselves when nobody commands them any more."""
    await asyncio.gather(*(_end(student.process) for student in students if student.process is not None))


async def _end(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), ENDING_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
