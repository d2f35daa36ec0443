"""The page, its WebSocket, and the rules of access to both."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from hiar.errors import UserError
from hiar.io.loopback import OWN
from hiar.live.minute import minute_card, minute_mp4
from hiar.live.room import Room, Viewer

PAGE = Path(__file__).parent / "page"
FILES = {
    "": "index.html",
    "live.css": "live.css",
    "live.js": "live.js",
    "players.js": "players.js",
    "charts.js": "charts.js",
}
MOST_VIEWERS = 32
RATE = 20.0  # messages per second that are read from a viewer; more wait in the connection
BURST = 40  # messages that may be read at once
ENTRY_SECONDS = 10.0  # within which a page must send its token
PENALTY_SECONDS = 1.0  # delay after a wrong token
WRONG_TOKEN, FULL, BEHIND_CODE = 4401, 4429, 4408
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def application(room: Room, token: str | None, *, loopback: bool) -> Starlette:
    """The page of a room. token: what viewers must give, if anything. loopback: answer to this machine's names only."""

    async def minute(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not _known(token, given):
            await asyncio.sleep(PENALTY_SECONDS)
            return PlainTextResponse("wrong token", 401)
        number = request.path_params["number"]
        if number >= len(room.students) or not room.students[number].pieces:
            return PlainTextResponse("no such video", 404)
        student = room.students[number]
        if request.path_params["form"] == "json":
            return JSONResponse(minute_card(room, student), headers=HEADERS)
        data = await asyncio.to_thread(minute_mp4, student.header, list(student.pieces))
        return Response(data, media_type="video/mp4", headers=HEADERS)

    async def live(socket: WebSocket) -> None:
        if not _same_origin(socket):
            await socket.close(1008)
            return
        await socket.accept()
        if len(room.viewers) >= MOST_VIEWERS:
            await socket.close(FULL)
            return
        with suppress(WebSocketDisconnect, RuntimeError):  # Starlette raises RuntimeError if the page has closed
            await _serve(room, socket, token)

    return Starlette(
        routes=[
            *(Route(f"/{name}", _file(file)) for name, file in FILES.items()),
            Route("/minute/{number:int}.{form:str}", minute),
            WebSocketRoute("/live", live),
        ],
        middleware=[Middleware(OwnNames)] if loopback else [],
    )


class OwnNames:
    """Answers requests to this machine's own names only, against DNS rebinding by pages from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests to this machine's own names; refuse others with 421, or by closing the WebSocket."""
        if scope["type"] in ("http", "websocket") and _name(_header(scope, b"host")) not in OWN:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await PlainTextResponse("unknown host name", 421)(scope, receive, send)
            return
        await self.app(scope, receive, send)


async def _serve(room: Room, socket: WebSocket, token: str | None) -> None:
    """Serve one page, from its token until it leaves."""
    read = _paced(socket)
    try:
        entry = await asyncio.wait_for(read(), ENTRY_SECONDS)
    except (TimeoutError, UserError):
        entry = {}
    if entry.get("kind") != "enter" or not _known(token, entry.get("token")):
        await asyncio.sleep(PENALTY_SECONDS)
        await socket.close(WRONG_TOKEN)
        return
    viewer = Viewer()
    room.enter(viewer)
    sender = asyncio.create_task(_send(socket, viewer))
    reader = asyncio.create_task(_read(room, viewer, read))
    try:
        await asyncio.wait([sender, reader], return_when=asyncio.FIRST_COMPLETED)
    finally:
        room.viewers.discard(viewer)
        for task in (sender, reader):
            task.cancel()
        ends = await asyncio.gather(sender, reader, return_exceptions=True)
    for error in ends:
        if isinstance(error, Exception):
            raise error
    if viewer.behind:
        await socket.close(BEHIND_CODE)


async def _send(socket: WebSocket, viewer: Viewer) -> None:
    """Send what is in a viewer's outbox, until the viewer is too slow."""
    while not viewer.behind:
        message = await viewer.outbox.get()
        if isinstance(message, bytes):
            await socket.send_bytes(message)
        else:
            await socket.send_text(json.dumps(message))


async def _read(room: Room, viewer: Viewer, read: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Do what a viewer asks for; answer what cannot be done with one line."""
    while True:
        try:
            message = await read()
            match message.get("kind"):
                case "watched":
                    seconds = message.get("seconds")
                    if isinstance(seconds, float) or (isinstance(seconds, int) and seconds.bit_length() < 64):
                        room.watched(float(seconds))
                case "prompt":
                    viewer.send({"kind": "taken", "block": room.change(message.get("text"))})
                case "restart":
                    room.restart(message.get("seed"), message.get("order"), message.get("context"))
                case _:
                    raise UserError("message: unknown kind; reload the page")
        except UserError as error:
            viewer.send({"kind": "refused", "line": " ".join(str(error).split())})


def _paced(socket: WebSocket) -> Callable[[], Awaitable[dict[str, Any]]]:
    """A reader of a page's messages, at most `RATE` per second; raises UserError for one that is no JSON object."""
    credit, last = float(BURST), time.monotonic()

    async def read() -> dict[str, Any]:
        nonlocal credit, last
        now = time.monotonic()
        credit, last = min(BURST, credit + RATE * (now - last)), now
        if credit < 1:
            await asyncio.sleep((1 - credit) / RATE)
        credit -= 1
        received = await socket.receive()
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code", 1005))
        try:
            message = json.loads(received.get("text") or "")
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise UserError("message: is not a JSON object in text; reload the page")
        return message

    return read


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(_: Request) -> Response:
        return FileResponse(PAGE / name, headers=HEADERS)

    return send


def _known(token: str | None, given: object) -> bool:
    return token is None or (
        isinstance(given, str) and hmac.compare_digest(token.encode(), given.encode("utf-8", "replace"))
    )


def _same_origin(socket: WebSocket) -> bool:
    """Whether a connection comes from our own page, or from a program other than a browser, which sends no origin."""
    origin = socket.headers.get("origin")
    return origin is None or origin.partition("://")[2] == socket.headers.get("host")


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _name(host: str) -> str:
    """The name in a Host header, without its port; IPv6 addresses without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
