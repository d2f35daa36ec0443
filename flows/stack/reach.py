"""How workers and the watcher reach Prefect's server: they wait while it is away, and read its clock.

With environment variables alone, and without Prefect's client, which takes long and much memory to load.
"""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any

from flows.server import NO_CREDENTIALS
from hiar.errors import UserError, without_password

ANSWER_SECONDS = 5.0
AWAY_SECONDS = 0.5  # between two attempts while the server is away


def wait_for_server() -> Any:
    """Wait until the server at PREFECT_API_URL answers, and return its httpx.Response.

    Raises UserError for what waiting cannot fix: an invalid address, another kind of server, another major version of
    Prefect, refused credentials.
    """
    import httpx

    url = os.environ.get("PREFECT_API_URL", "")
    place = f"PREFECT_API_URL = {without_password(url)}"
    user, _, password = os.environ.get("PREFECT_API_AUTH_STRING", "").partition(":")
    while True:
        try:
            answer = httpx.get(f"{url}/admin/version", auth=(user, password), timeout=ANSWER_SECONDS)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL):
            raise UserError(f"{place}: is not a URL; give a Prefect server's, as in http://HOST:4200/api") from None
        except httpx.TransportError:
            answer = None
        if answer is not None and not answer.is_server_error:
            _check(answer, place)
            return answer
        time.sleep(AWAY_SECONDS)


def time_of(answer: Any) -> datetime:
    """The server's clock when it answered, or this machine's, which may differ, if the answer has no date."""
    said = answer.headers.get("date")
    return parsedate_to_datetime(said) if said else datetime.now(UTC)


def _check(answer: Any, place: str) -> None:
    """Raise UserError unless the answer is a Prefect server's version with the same major number as ours."""
    if answer.status_code in (401, 403):
        raise UserError(f"{place}: {NO_CREDENTIALS}")
    found = re.fullmatch(r'"((\d+)\.[\w.+]+)"', answer.text) if answer.is_success else None
    if found is None:
        raise UserError(f"{place}: no Prefect server answers there; give the address of one, which ends with /api")
    own = version("prefect")
    if found[2] != own.partition(".")[0]:
        raise UserError(f"{place}: the server runs Prefect {found[1]}, this machine {own}; use one version on both")
