"""Messages between `hiar live` and a student's process: JSON lines to it, JSON followed by bytes from it.

Commands to a student, by ``do``:

- ``until``: blocks of the time line before ``block`` may be made;
- ``prompt``: the prompt from ``block`` on is ``text``;
- ``restart``: a new video starts at ``block``, with ``prompt``, ``seed``, ``order`` and ``context``; ``renew``: whether
  contexts are recomputed when the prompt changes.

Messages from a student, by ``kind``: ``ready`` with the header of its video, ``block`` with its next fragment,
``refused`` with a ``line`` for a prompt that it cannot show, ``broken`` with a ``line`` when it cannot continue.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any, BinaryIO

from hiar.io.outputs import write_all

Message = dict[str, Any]
_SIZES = struct.Struct(">II")  # bytes of the JSON, and of the data after it


def command_line(command: Message) -> bytes:
    """A command as a line of JSON."""
    return json.dumps(command).encode() + b"\n"


def write_message(outlet: BinaryIO, message: Message, data: bytes = b"") -> None:
    """Write a message to the server. Raises BrokenPipeError if the server has ended."""
    head = json.dumps(message).encode()
    write_all(outlet, _SIZES.pack(len(head), len(data)) + head + data)


async def read_message(inlet: asyncio.StreamReader) -> tuple[Message, bytes] | None:
    """A student's next message and its data; None when its process has ended."""
    try:
        head, data = _SIZES.unpack(await inlet.readexactly(_SIZES.size))
        return json.loads(await inlet.readexactly(head)), await inlet.readexactly(data)
    except asyncio.IncompleteReadError:
        return None
