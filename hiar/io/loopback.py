"""Addresses of this machine, which must not go through a proxy."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from hiar.errors import UserError

OWN = ("localhost", "127.0.0.1", "::1")


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY in both spellings, as libraries differ in which they read, with this machine's addresses added."""
    given = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in environment.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys(host for host in (*given, *OWN) if host))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def check_loopback() -> None:
    """Raise UserError where this machine does not reach itself, as in a name space of networks that was just made."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise UserError(f"127.0.0.1: {reason}: this machine cannot reach itself; run ip link set lo up") from None
