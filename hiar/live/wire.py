"""What `hiar live` and a student's process say to each other: JSON lines one way, JSON with bytes behind it the other.

What is said to a student, by ``do``:

- ``until``: blocks of the time line before ``block`` may be made;
- ``prompt``: ``text`` holds from ``block`` on;
- ``restart``: from ``block`` on a new video, of ``prompt``, ``seed``, ``order`` and ``context``; ``renew``: whether
  contexts are made anew where the prompt changes.

What a student says, by ``kind``: ``ready`` with the header of its video, ``block`` with the next fragment of it,
``broken`` with a ``line`` when it cannot go on.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, BinaryIO

from hiar.io.outputs import write_all

Message = dict[str, Any]
_SIZES = struct.Struct(">II")  # bytes of the JSON, and of what is behind it


def command_line(command: Message) -> bytes:
    """A command as a student reads it."""
    return json.dumps(command).encode() + b"\n"


def write_message(outlet: BinaryIO, message: Message, data: bytes = b"") -> None:
    """Say something to the server. Raises BrokenPipeError when it has gone."""
    head = json.dumps(message).encode()
    write_all(outlet, _SIZES.pack(len(head), len(data)) + head + data)


async def read_message(inlet: asyncio.StreamReader) -> tuple[Message, bytes] | None:
    """What a student says next; None when it has ended."""
    try:
        head, data = _SIZES.unpack(await inlet.readexactly(_SIZES.size))
        return json.loads(await inlet.readexactly(head)), await inlet.readexactly(data)
    except asyncio.IncompleteReadError:
        return None
