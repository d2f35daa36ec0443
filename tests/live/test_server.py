"""Who may use the page, and how much: the server's application, in this process and without running students."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect
from students import save_student

from hiar.io.video import fragments
from hiar.live import room as rooms
from hiar.live import server
from hiar.live.room import Room
from hiar.live.server import application
from hiar.live.students import Student
from hiar.live.timeline import Timeline
from hiar.models.card import load_card

PROMPT, TOKEN, FPS, BLOCK = "a red disc moves left", "sixteen letters!", 12, 3
PATIENCE = 30  # seconds before a wait fails


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "student"
    save_student(folder)
    return folder


@pytest.fixture
def room(checkpoint) -> Room:
    """A room with one student that has made the first block of a video."""
    student = Student("one", checkpoint, load_card(checkpoint), header=fragments(64, 64, FPS)[0])
    opened = Room([student], Timeline(BLOCK, BLOCK, FPS, lead=1.0), PROMPT, seed=0)
    opened.begin(PROMPT, 0, None, None)
    student.keep({"kind": "block", "block": 0, "prompt": PROMPT, "pictures": BLOCK, "latent": "hash"}, b"", FPS)
    return opened


@pytest.fixture
def client(room: Room, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(server, "PENALTY_SECONDS", 0.0)
    with TestClient(application(room, TOKEN, loopback=True), base_url="http://127.0.0.1:8765") as opened:
        yield opened


def connect(client: TestClient) -> WebSocketTestSession:
    return client.websocket_connect("/live", headers={"host": "127.0.0.1:8765"})


@contextmanager
def entered(client: TestClient, room: Room) -> Iterator[WebSocketTestSession]:
    """A connected viewer that has received its hello; on exit, it leaves and the server has noticed."""
    with connect(client) as viewer:
        viewer.send_json({"kind": "enter", "token": TOKEN})
        assert viewer.receive_json()["kind"] == "hello"
        yield viewer
        here = len(room.viewers)
        viewer.close()
        client.portal.call(_until, lambda: len(room.viewers) < here)  # type: ignore[union-attr]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)  # lets tasks that are ready run


def close_code(viewer: WebSocketTestSession) -> int:
    """The code with which the server closes the connection, after any remaining messages."""
    while (message := viewer.portal.call(_receive, viewer))["type"] != "websocket.close":
        pass
    return cast(int, message["code"])


async def _receive(viewer: WebSocketTestSession) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await viewer._send_rx.receive()


def test_viewers_are_limited_until_one_leaves(room: Room, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_VIEWERS", 2)
    with entered(client, room):
        with entered(client, room), connect(client) as third:
            assert close_code(third) == server.FULL
        with entered(client, room):
            assert len(room.viewers) == 2
    assert not room.viewers


def test_a_viewer_that_falls_behind_is_disconnected(
    room: Room, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "BEHIND", 4)  # fewer messages than are sent at once
    with connect(client) as viewer:
        viewer.send_json({"kind": "enter", "token": TOKEN})
        assert viewer.receive_json()["kind"] == "hello"
        client.portal.call(_change_prompt_often, room)  # type: ignore[union-attr]
        assert close_code(viewer) == server.BEHIND_CODE
        assert not room.viewers


async def _change_prompt_often(room: Room) -> None:
    for _ in range(9):
        room.change(PROMPT)


def test_a_viewer_without_a_token_in_time_is_disconnected(
    room: Room, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ENTRY_SECONDS", 0.05)
    for messages in ([], [{"kind": "enter", "token": "wrong"}], [{"kind": "watched", "token": TOKEN}]):
        with connect(client) as viewer:
            for message in messages:
                viewer.send_json(message)
            assert close_code(viewer) == server.WRONG_TOKEN
    monkeypatch.setattr(server, "ENTRY_SECONDS", float(PATIENCE))
    for text in ("no json", "[]"):  # answered at once
        with connect(client) as viewer:
            viewer.send_text(text)
            assert close_code(viewer) == server.WRONG_TOKEN
    assert not room.viewers


def test_the_last_minute_requires_the_token(room: Room, client: TestClient) -> None:
    for given in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer wrong"}):
        assert client.get("/minute/0.json", headers=given).status_code == 401
    known = {"Authorization": f"Bearer {TOKEN}"}
    assert client.get("/minute/0.json", headers=known).json()["checkpoint"] == "one"
    assert client.get("/minute/1.json", headers=known).status_code == 404
    assert client.get("/minute/0.mp4", headers=known).headers["cache-control"] == "no-cache"  # the next one differs
    assert client.get("/minute/0.json", headers=known).headers["cache-control"] == "no-cache"
    room.students[0].pieces, pieces = deque(), room.students[0].pieces
    assert client.get("/minute/0.json", headers=known).status_code == 404  # no block is made yet
    room.students[0].pieces = pieces
    open_to_all = TestClient(application(room, None, loopback=True), base_url="http://localhost")
    assert open_to_all.get("/minute/0.json").json()["blocks"] == [0, 0]


def test_a_wrong_token_is_delayed_and_the_right_one_is_not(
    room: Room, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, sleep = [], asyncio.sleep

    async def pass_by(seconds: float) -> None:
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(server, "PENALTY_SECONDS", 3600.0)
    monkeypatch.setattr(asyncio, "sleep", pass_by)
    assert client.get("/minute/0.json", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert waited.count(3600.0) == 1
    with connect(client) as viewer:
        viewer.send_json({"kind": "enter", "token": "wrong"})
        assert close_code(viewer) == server.WRONG_TOKEN
    assert waited.count(3600.0) == 2
    assert client.get("/minute/0.json", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    with entered(client, room):
        assert waited.count(3600.0) == 2


@pytest.mark.parametrize(
    ("host", "code"), [("localhost:1", 200), ("[::1]:1", 200), ("[::2]", 421), ("localhost.elsewhere.example", 421)]
)
def test_only_hosts_that_name_this_machine_are_answered(
    client: TestClient, host: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ENTRY_SECONDS", 0.0)
    assert client.get("/", headers={"Host": host}).status_code == code
    refused = nullcontext() if code == 200 else pytest.raises(WebSocketDisconnect)
    with refused, client.websocket_connect("/live", headers={"host": host}) as viewer:
        assert close_code(viewer) == server.WRONG_TOKEN


def test_other_machines_may_call_this_one_by_any_name(room: Room) -> None:
    """Where the page is for them: then they need the token."""
    with TestClient(application(room, TOKEN, loopback=False), base_url="http://lab.example:8765") as client:
        assert client.get("/").status_code == 200
        assert client.get("/minute/0.json", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        ("http://127.0.0.1:8765", True),
        ("http://127.0.0.1:8765.elsewhere.example", False),
        ("http://127.0.0.1", False),
        ("null", False),
    ],
)
def test_only_our_own_page_may_connect(
    client: TestClient, origin: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ENTRY_SECONDS", 0.0)
    headers = {"host": "127.0.0.1:8765", "origin": origin}
    refused = nullcontext() if own else pytest.raises(WebSocketDisconnect)
    with refused, client.websocket_connect("/live", headers=headers) as viewer:
        assert close_code(viewer) == server.WRONG_TOKEN


def test_messages_beyond_a_burst_are_read_at_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that advances by sleeping: after a burst, each message takes 1 / RATE seconds."""
    now = [100.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    async def receive() -> dict[str, str]:
        return {"type": "websocket.receive", "text": json.dumps({"kind": "watched"})}

    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(server, "asyncio", SimpleNamespace(sleep=sleep))
    read = server._paced(cast(Any, SimpleNamespace(receive=receive)))

    async def all_of(count: int) -> float:
        began = now[0]
        for _ in range(count):
            await read()
        return now[0] - began

    assert asyncio.run(all_of(server.BURST)) == 0
    assert asyncio.run(all_of(100)) == pytest.approx(100 / server.RATE, abs=1 / server.RATE)
    now[0] += 3600.0  # a long silence allows no larger burst
    assert asyncio.run(all_of(server.BURST + 20)) == pytest.approx(20 / server.RATE, abs=1 / server.RATE)
