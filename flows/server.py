"""The Prefect server that a run reports to: the user's, or a temporary one. Its faults are reported within seconds.

`python -m flows.server` only checks the user's: before Prefect's own commands, which report faults as tracebacks.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiar.errors import UserError, say, without_password
from hiar.io.files import writing
from hiar.io.loopback import check_loopback

ANSWER_SECONDS = 5.0  # how long an idle server may take to answer
BAD_START = 3  # exit code of a server that ends before it serves
ATTEMPTS = 2  # of a temporary server to start; Prefect tries without end, since another may have taken its port
NO_CREDENTIALS = "the server rejects the credentials; set PREFECT_API_AUTH_STRING to its PREFECT_SERVER_API_AUTH_STRING"
OWN_NO_PROXY = "HIAR_NO_PROXY"  # what the stages get as NO_PROXY, where the flow itself uses no proxy at all


def reach_server() -> None:
    """Make sure that a server answers, starting a temporary one if the user names none.

    Raises UserError, within seconds, if the user's does not answer like a Prefect server, or the temporary one fails
    to start.
    """
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url:
        _ask(url)
    else:
        _start_temporary()


def _ask(url: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with (
            temporary_settings({PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS, PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True) as client,
        ):
            client.read_flows(limit=1)
            client.raise_for_api_version_mismatch()  # which would end the run with a traceback
    except Exception as error:  # whatever an address that is none, a network, or somebody else's server leads to
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise UserError(f"PREFECT_API_URL = {without_password(url)}: {NO_CREDENTIALS}") from None
        raise UserError(
            f"PREFECT_API_URL = {without_password(url)}: no Prefect server answers there ({_reason(error)}); start it "
            "(`make stack`), or unset PREFECT_API_URL for a temporary one"
        ) from None


def _start_temporary() -> None:
    """Start Prefect's temporary server, as Prefect does with its first request, but notice when it fails.

    Prefect waits for one that has ended as long as for a slow one. The server's output goes to a file.
    """
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_HOME

    check_loopback()  # else Prefect would wait for minutes
    os.environ[OWN_NO_PROXY] = os.environ.get("NO_PROXY", "")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # so that not even a proxy's address is parsed
    log = PREFECT_HOME.value() / "server.log"
    failures: list[Exception] = []

    def start() -> None:
        try:
            server.start()
        except Exception as error:  # reported by the waiting thread
            failures.append(error)

    with _errors_to(log):
        server = SubprocessASGIServer()
        run, left = server._run_uvicorn_command, iter(range(ATTEMPTS))

        def attempt() -> Any:
            if next(left, None) is None:  # later ones would print to the user's terminal
                raise RuntimeError(f"{ATTEMPTS} processes exited")
            return run()

        server._run_uvicorn_command = attempt  # type: ignore[method-assign]
        starting = threading.Thread(target=start, daemon=True)
        starting.start()
        while starting.is_alive():
            starting.join(0.05)
            process = server.server_process
            if process is not None and process.poll() not in (None, BAD_START):
                break
    if starting.is_alive() or failures:
        process = server.server_process
        ended = process is not None and process.poll() is not None
        reason = _last_error(log) if ended else _reason(failures[0])
        raise UserError(
            f"{log}: Prefect's temporary server does not start ({reason}); fix that, remove {log.parent} if it is "
            "damaged, or set PREFECT_API_URL to a server of your own"
        )


def _last_error(log: Path) -> str:
    """The most telling line of a log: the last that names an exception, otherwise the last one."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it printed nothing"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[-1][:200]


@contextmanager
def _errors_to(path: Path) -> Iterator[None]:
    """During the body the standard error of this process, and of those that it starts, goes to a new file."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    sys.stderr.flush()
    terminal = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        file.close()


def _reason(error: BaseException) -> str:
    return without_password(" ".join(f"{type(error).__name__}: {error}".split()))[:200]


def main() -> int:
    """Ask the server that the settings name; the exit code."""
    from prefect.settings import PREFECT_API_URL

    try:
        _ask(PREFECT_API_URL.value() or "")
    except UserError as error:
        say(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
