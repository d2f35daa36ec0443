"""What all viewers share: the students, one time line, one prompt. All of it runs on one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, get_args

from hiar import config
from hiar.errors import UserError
from hiar.io.text import one_line
from hiar.live.students import Piece, Student, follow, world_of
from hiar.live.timeline import Timeline
from hiar.live.walking import blocks_ahead
from hiar.live.wire import Message
from hiar.models.card import Walk
from hiar.options import MOST_SEED, walk_of
from hiar.stages.rollouts import walk_asked
from hiar.worlds.interface import FIRST_CLIP

BEHIND = 1000  # messages that may wait for a viewer; a slower one is disconnected
HISTORY = 200  # how many prompts, and how many videos, are remembered
LONGEST_PROMPT = 2000  # characters
SUGGESTIONS = 8


@dataclass(eq=False)
class Viewer:
    """One open page. outbox: messages to send to it."""

    outbox: asyncio.Queue[Message | bytes] = field(default_factory=lambda: asyncio.Queue(BEHIND))
    behind: bool = False

    def send(self, message: Message | bytes) -> None:
        """Put a message into the outbox; if it is full, note that the viewer is too slow."""
        if self.behind:
            return
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.behind = True


@dataclass
class Room:
    """The students and the viewers who are watching them."""

    students: list[Student]
    timeline: Timeline
    prompt: str
    seed: int
    order: config.Order | None = None
    context: config.Context | None = None
    renew: bool = False  # recompute the contexts of earlier blocks when the prompt changes
    viewers: set[Viewer] = field(default_factory=set)
    history: deque[Message] = field(default_factory=lambda: deque(maxlen=HISTORY))
    videos: deque[Message] = field(default_factory=lambda: deque(maxlen=HISTORY))  # kept however many prompts follow
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def open(self) -> None:
        """Begin the first video and listen to the students, whose processes must be running."""
        self.tasks = [asyncio.create_task(self._follow(number)) for number in range(len(self.students))]
        self.begin(self.prompt, self.seed, self.order, self.context)

    def begin(self, prompt: str, seed: int, order: config.Order | None, context: config.Context | None) -> None:
        """Begin a new video after the last block that students may make. Raises UserError for a bad prompt or walk."""
        prompt = self._checked(prompt)
        for student in self.students:
            walk_asked(student.card, order, context)
        self.prompt, self.seed, self.order, self.context = prompt, seed, order, context
        block = self.timeline.restart()
        asked = {"prompt": prompt, "seed": seed, "order": order, "context": context}
        self._tell({"do": "restart", "block": block, "renew": self.renew, **asked})
        note = {"kind": "restart", "block": block, "seconds": self.timeline.seconds(block), **asked}
        if self.videos and self.videos[-1]["block"] == block:
            self.videos.pop()  # not a block of it was made
        self.videos.append(note)
        self._note(note)

    def restart(self, seed: object, order: object, context: object) -> None:
        """`begin` with a viewer's unchecked values. Raises UserError if they are not valid."""
        if not (isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= MOST_SEED):
            raise UserError(f"seed: should be a whole number from 0 to {MOST_SEED}")
        if not all(value is None or isinstance(value, str) for value in (order, context)):
            raise UserError("order, context: should be words; choose from the lists")
        self.begin(self.prompt, seed, *walk_of(order, context))  # type: ignore[arg-type]

    def change(self, text: object) -> int:
        """Change the prompt from the first block that no student can have begun; returns that block.

        Raises UserError for a prompt that the world does not know; the previous prompt then stays in force.
        """
        prompt = self._checked(text)
        ahead = max(blocks_ahead(student.card, self._walk(student)) for student in self.students)
        block = self.timeline.until + ahead
        self.prompt = prompt
        self._tell({"do": "prompt", "text": prompt, "block": block})
        self._note({"kind": "prompt", "block": block, "seconds": self.timeline.seconds(block), "prompt": prompt})
        return block

    def watched(self, seconds: float) -> None:
        """Note how far a viewer has watched, and let students make more blocks if that allows it."""
        if self.timeline.watch(seconds):
            self._tell({"do": "until", "block": self.timeline.until})

    def enter(self, viewer: Viewer) -> None:
        """Add a viewer, who starts where the others are, and let students continue."""
        viewer.send(self.greeting())
        for number, student in enumerate(self.students):
            viewer.send(bytes([number]) + student.header)
            for piece in student.pieces:
                if piece.end > self.timeline.watched:
                    _send(viewer, number, piece)
            if student.line:
                viewer.send({"kind": "broken", "student": number, "line": student.line})
        self.viewers.add(viewer)
        self.watched(self.timeline.watched)

    def greeting(self) -> Message:
        """The first message to a page: what it needs before the first picture."""
        world = world_of(self.students)
        try:
            suggestions = list(dict.fromkeys(world.prompts(seed=0, first=FIRST_CLIP["sample"], count=SUGGESTIONS)))
        except UserError:
            suggestions = []  # the world's file of prompts is missing
        return {
            "kind": "hello",
            "world": world.name,
            "width": world.width,
            "height": world.height,
            "fps": self.timeline.fps,
            "block": self.timeline.block,
            "lead": self.timeline.lead,
            "watched": self.timeline.watched,
            "students": [
                {
                    "name": student.name,
                    "codec": student.codec,
                    "device": student.device,
                    "walk": self._walk(student).model_dump(),
                }
                for student in self.students
            ],
            "orders": get_args(config.Order),
            "contexts": get_args(config.Context),
            "longest": LONGEST_PROMPT,
            "prompt": self.prompt,
            "seed": self.seed,
            "order": self.order,
            "context": self.context,
            "suggestions": suggestions,
            "history": list(self.history),
        }

    def _walk(self, student: Student) -> Walk:
        return walk_asked(student.card, self.order, self.context)

    def _checked(self, text: object) -> str:
        if not isinstance(text, str) or not text.strip():
            raise UserError("prompt: is empty; describe a video")
        if len(text) > LONGEST_PROMPT:
            raise UserError(f"prompt: has {len(text)} characters; use up to {LONGEST_PROMPT}")
        prompt = one_line(text)
        world_of(self.students).check(prompt)
        return prompt

    def _tell(self, command: Message) -> None:
        for student in self.students:
            student.tell(command)

    def _note(self, message: Message) -> None:
        self.history.append(message)
        self._send(message)

    def _send(self, message: Message) -> None:
        for viewer in self.viewers:
            viewer.send(message)

    async def _follow(self, number: int) -> None:
        student = self.students[number]

        async def heard(message: Message, data: bytes) -> None:
            if message["kind"] == "refused":
                self._send(message)
                return
            piece = student.keep(message, data, self.timeline.fps)
            self._count_made(student)
            for viewer in self.viewers:
                _send(viewer, number, piece)

        await follow(student, heard)
        self._count_made(student)  # those that waited for it go on: none may have another block to send
        self._send({"kind": "broken", "student": number, "line": student.line})

    def _count_made(self, latest: Student) -> None:
        """Note how much the slowest student that still works has made; if none does, the ``latest`` one."""
        working = [student for student in self.students if student.line is None]
        self.timeline.made = min(student.made for student in working or [latest])


def _send(viewer: Viewer, number: int, piece: Piece) -> None:
    told: dict[str, Any] = {"student": number, "start": piece.start, "end": piece.end}
    viewer.send(piece.message | told)
    viewer.send(bytes([number]) + piece.data)
