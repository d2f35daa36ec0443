"""The server's own limits on clients and messages, with a trivial application."""

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


def get_page(address: str, **headers: str) -> HTTPResponse:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answer: HTTPResponse = opener.open(urllib.request.Request(f"http://{address}/", headers=headers), timeout=PATIENCE)
    return answer


def test_forwarded_headers_are_ignored_and_no_server_header_is_sent(address: str) -> None:
    with get_page(address, **{"X-Forwarded-For": "192.0.2.9", "X-Forwarded-Proto": "https"}) as answer:
        assert json.load(answer) == "127.0.0.1"
        assert "server" not in answer.headers


def test_a_message_above_the_largest_size_closes_the_connection(address: str) -> None:
    with echoing(address) as viewer:
        viewer.send("x" * serving.LARGEST_MESSAGE)
        assert json.loads(viewer.recv(PATIENCE)) == serving.LARGEST_MESSAGE
        viewer.send("x" * (serving.LARGEST_MESSAGE + 1))
        with pytest.raises(ConnectionClosed) as closed:
            viewer.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


def test_connections_beyond_the_limit_are_answered_503(address: str) -> None:
    with ExitStack() as viewers:
        for _ in range(MOST - 1):
            viewers.enter_context(echoing(address))
        with pytest.raises(HTTPError, match="503"):
            get_page(address)
    with ExitStack() as viewers:
        viewers.enter_context(echoing(address)).send("x")
        with get_page(address) as answer:
            assert answer.status == 200
