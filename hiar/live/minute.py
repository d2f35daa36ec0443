"""The last minute of a student as a file, and the card that describes it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from hiar.io.video import whole_mp4
from hiar.live.students import Piece, Student
from hiar.live.wire import Message
from hiar.stages.rollouts import walk_asked

if TYPE_CHECKING:
    from hiar.live.room import Room


def minute_mp4(header: bytes, pieces: Sequence[Piece]) -> bytes:
    """The mp4 of consecutive pieces of a stream; its time starts at 0."""
    return whole_mp4(header + b"".join(piece.data for piece in pieces))


def minute_card(room: Room, student: Student) -> Message:
    """What the last minute shows, and how it was made: seeds and walks of its videos, prompts by block."""
    first, last = student.pieces[0].message["block"], student.pieces[-1].message["block"]
    shown = [note for note in room.videos if first < note["block"] <= last]
    before = [note for note in room.videos if note["block"] <= first][-1:]
    prompts = groupby(student.pieces, key=lambda piece: piece.message["prompt"])
    return {
        "checkpoint": student.name,
        "content": student.content,
        "stage": student.card.stage,
        "trained_seed": student.card.seed,
        "world": student.card.world.kind,
        "frames_per_second": room.timeline.fps,
        "blocks": [first, last],
        "videos": [
            {
                "from_block": note["block"],
                "seed": note["seed"],
                "walk": walk_asked(student.card, note["order"], note["context"]).model_dump(),
            }
            for note in before + shown
        ],
        "contexts_renewed": room.renew,
        "prompts": [{"from_block": next(pieces).message["block"], "prompt": prompt} for prompt, pieces in prompts],
        "latents_sha256": [piece.message["latent"] for piece in student.pieces],
    }
