"""The server's own limits on clients and requests, with an application that only answers."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPResponse
from urllib.error import HTTPError

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from hiar.live import serving

PATIENCE = 60  # seconds
MOST = 3  # connections


async def who(request: Request) -> JSONResponse:
    return JSONResponse(request.client and request.client.host)


async def echo(socket: WebSocket) -> None:
    await socket.accept()
    while (message := await socket.receive())["type"] == "websocket.receive":
        await socket.send_json(len(message["text"]))


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server with our server's settings."""
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", MOST)
    app = Starlette(routes=[Route("/", who), WebSocketRoute("/echo", echo)])
    server = uvicorn.Server(serving._configuration(app))
    with serving._listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def echoing(address: str) -> ClientConnection:
    return connect(f"ws://{address}/echo", proxy=None, open_timeout=PATIENCE)


def asked(address: str, **headers: str) -> HTTPResponse:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer: HTTPResponse = opener.open(urllib.request.Request(f"http://{address}/", headers=headers), timeout=PATIENCE)
    return answer


def test_nobody_is_who_a_header_says_and_the_server_does_not_say_what_it_is(address: str) -> None:
    with asked(address, **{"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https"}) as answer:
        assert json.load(answer) == "127.0.0.1"
        assert "server" not in answer.headers


def test_a_viewers_message_has_a_largest_size(address: str) -> None:
    with echoing(address) as viewer:
        viewer.send("x" * serving.LARGEST_MESSAGE)
        assert json.loads(viewer.recv(PATIENCE)) == serving.LARGEST_MESSAGE
        viewer.send("x" * (serving.LARGEST_MESSAGE + 1))
        with pytest.raises(ConnectionClosed) as closed:
            viewer.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


def test_more_connections_than_there_may_be_are_turned_away(address: str) -> None:
    with ExitStack() as viewers:
        for _ in range(MOST - 1):
            viewers.enter_context(echoing(address))
        with pytest.raises(HTTPError, match="503"):
            asked(address)
    with ExitStack() as viewers:
        viewers.enter_context(echoing(address)).send("x")
        with asked(address) as answer:
            assert answer.status == 200
