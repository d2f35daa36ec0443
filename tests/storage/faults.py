"""A proxy in front of an S3 store that injects faults of networks and stores, drawn with a seed."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter

KINDS = ("late", "unavailable", "cut upload", "cut answer", "reset upload", "reset answer")
ANSWER = b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
ERROR = b"<Error><Code>%s</Code><Message>of the tests</Message></Error>"
MOST = 6000  # most bytes of a connection before it is cut


class Faults:
    """A proxy to ``store`` (its port); a fraction ``share`` of the connections gets a fault of one of ``kinds``.

    full: every write is answered with 507. done: how often each kind has happened.
    """

    def __init__(self, store: int, seed: int = 0, kinds: tuple[str, ...] = KINDS, share: float = 0.3) -> None:
        self.store, self.kinds, self.share, self.full = store, kinds, share, False
        self.done: Counter[str] = Counter()
        self._draw = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _connected(self, theirs: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        kind = self._draw.choice(self.kinds) if self.kinds and self._draw.random() < self.share else ""
        cut = self._draw.randrange(100, MOST)
        try:
            head = await theirs.read(1)
            if not head:
                return None
            if kind == "unavailable":
                return await self._refuse(theirs, back, kind, b"503 Slow Down", b"SlowDown")
            if self.full and head in b"P":  # PUT or POST
                return await self._refuse(theirs, back, "full", b"507 Insufficient Storage", b"InsufficientStorage")
            answers, onward = await asyncio.open_connection("127.0.0.1", self.store)
            onward.write(head)
            limits = {"upload": None, "answer": None} | ({kind.split()[-1]: cut} if " " in kind else {})
            late = 0.2 if kind == "late" else 0.0
            self.done[kind] += kind == "late"
            ways = ((theirs, onward, limits["upload"]), (answers, back, limits["answer"]))
            tasks = [asyncio.create_task(self._pass(*way, late)) for way in ways]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if any(task.result() for task in done):  # the limit was reached
                self.done[kind] += 1
                for writer in (back, onward):
                    self._end(writer, kind)
            else:
                await asyncio.wait(pending, timeout=5)
            for task in tasks:
                task.cancel()
            onward.close()
        except OSError:
            pass
        finally:
            back.close()

    async def _pass(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, limit: int | None, late: float
    ) -> bool:
        """Forward bytes; returns whether that ended at the limit."""
        passed = 0
        try:
            while data := await source.read(4096):
                await asyncio.sleep(late)
                if limit is not None and passed + len(data) >= limit:
                    to.write(data[: limit - passed])
                    await to.drain()
                    return True
                passed += len(data)
                to.write(data)
                await to.drain()
        except OSError:
            pass
        return False

    async def _refuse(
        self, theirs: asyncio.StreamReader, back: asyncio.StreamWriter, kind: str, status: bytes, code: bytes
    ) -> None:
        self.done[kind] += 1
        await theirs.readuntil(b"\r\n\r\n")
        back.write(ANSWER % (status, len(ERROR % code), ERROR % code))
        await back.drain()

    @staticmethod
    def _end(writer: asyncio.StreamWriter, kind: str) -> None:
        if kind.startswith("reset"):
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()
