"""Addresses of this machine, which must not go through a proxy."""

from __future__ import annotations

from collections.abc import Mapping

OWN = ("localhost", "127.0.0.1", "::1")


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY in both spellings, as libraries differ in which they read, with this machine's addresses added."""
    given = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in environment.get(name, "").split(",")]
    hosts = ",".join(dict.fromkeys(host for host in (*given, *OWN) if host))
    return {"NO_PROXY": hosts, "no_proxy": hosts}
