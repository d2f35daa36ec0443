"""`hiar live` as a whole: start the students, serve the page, end everything together."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from hiar.errors import UserError
from hiar.io.loopback import OWN
from hiar.io.outputs import CRF
from hiar.live.room import Room
from hiar.live.server import application
from hiar.live.students import Student, end_all, find_students, start_all, world_of
from hiar.live.timeline import Timeline
from hiar.worlds.interface import FIRST_CLIP, World

TOKEN = "HIAR_LIVE_TOKEN"
SHORTEST_TOKEN = 16
EVERY = ("", "0.0.0.0", "::")  # hosts that mean all addresses of this machine
LARGEST_MESSAGE = 2**16  # bytes, from a viewer
MOST_CONNECTIONS = 200


def serve(
    checkpoints: Sequence[Path],
    prompt: str | None,
    seed: int,
    host: str,
    port: int,
    lead: float,
    announce: Callable[[str], None],
    renew: bool = False,
) -> None:
    """Show students side by side until Ctrl-C; ``announce`` is called with the page's address once it can be opened.

    renew: recompute contexts when the prompt changes.
    Raises UserError for checkpoints that cannot be shown, a prompt that their world does not know, an address that
    cannot be listened on, and an address that other machines can reach without a token.
    """
    token = _token(host)
    students = find_students(checkpoints)
    prompt = prompt or own_prompt(world_of(students), seed)
    world_of(students).check(prompt)
    with _listen(host, port) as listener, asyncio.Runner() as runner:
        address = _address(host, listener.getsockname()[1])
        try:
            runner.run(_serve(students, prompt, seed, lead, token, listener, address, announce, renew))
        finally:
            # A second run: uvicorn raises Ctrl-C again as it ends, which cancels whatever the first run then awaits.
            runner.run(end_all(students))


async def _serve(
    students: list[Student],
    prompt: str,
    seed: int,
    lead: float,
    token: str | None,
    listener: socket.socket,
    address: str,
    announce: Callable[[str], None],
    renew: bool,
) -> None:
    """Start the students and serve their page until a signal arrives."""
    await start_all(students, CRF, Path("params.yaml").absolute())
    timeline = Timeline(*students[0].pictures, world_of(students).frames_per_second, lead)
    room = Room(students, timeline, prompt, seed, renew=renew)
    room.open()
    server = uvicorn.Server(_configuration(application(room, token, loopback=listener.getsockname()[0] in OWN)))
    announce(address)
    await server.serve(sockets=[listener])


def _configuration(app: Starlette) -> uvicorn.Config:
    """The server's settings: what viewers ask for is not logged."""
    return uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws_max_size=LARGEST_MESSAGE,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )


def own_prompt(world: World, seed: int) -> str:
    """One of the world's own prompts. Raises UserError if its file of prompts is missing."""
    try:
        return world.prompts(seed=seed, first=FIRST_CLIP["sample"], count=1)[0]
    except UserError as error:
        reason = str(error).partition(";")[0]
        raise UserError(f"--prompt: is missing, and the world's prompts cannot be read ({reason}); give one") from None


def _token(host: str) -> str | None:
    """The token that viewers must give. Raises UserError if it is short, or missing where others can reach the page."""
    token = os.environ.get(TOKEN) or None
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UserError(f"{TOKEN}: has {len(token)} characters; give it at least {SHORTEST_TOKEN}")
    if token is None and host not in OWN:
        raise UserError(
            f"--host = {host}: is reachable from other machines; set {TOKEN} to what viewers must give, at least "
            f"{SHORTEST_TOKEN} characters, such as from `openssl rand -hex 16`"
        )
    return token


def _address(host: str, port: int) -> str:
    """The page's URL; where it listens on all addresses, with the machine's host name."""
    name = socket.gethostname() if host in EVERY else host
    return f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError if the address cannot be listened on."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # Since Python 3.13 strerror also repeats what was tried, so the system's own text is used.
        number = None if isinstance(error, socket.gaierror) else error.errno
        reason = (os.strerror(number) if number else error.strerror or str(error)).lower()
        raise UserError(f"--host, --port = {host}, {port}: {reason}; choose another --port, or --host") from None
