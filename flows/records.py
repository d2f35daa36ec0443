"""`python -m flows.records --port PORT`: MLflow's UI on this project's records, as started by `make mlflow`."""

from __future__ import annotations

import argparse
import os
import socket
import sqlite3
import sys
from pathlib import Path
from typing import NoReturn

from hiar.errors import UserError
from hiar.tracking.records import follow_project, records_uri, view_paths
from hiar.tracking.spool import LOCAL, SPOOL, start_sender, waiting

HOST = "127.0.0.1"


def main() -> NoReturn:
    """Replace this process by MLflow's server; a user's mistake gives one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m flows.records")
    parser.add_argument("--port", required=True)
    try:
        port = free_port(parser.parse_args().port)
        try:
            follow_project(Path.cwd())
            views = view_paths(Path.cwd())
        except sqlite3.Error as error:
            in_use = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            remedy = "wait for the program that writes to it" if in_use else "repair it, or move it away to start over"
            raise UserError(f"mlflow.db: cannot be read ({error}); {remedy}") from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if waiting(folder := Path.cwd() / SPOOL / LOCAL):
        start_sender(folder)
    for name, path in views.items():
        print(f"contenders of {name}: http://{HOST}:{port}{path}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [*command, "--backend-store-uri", records_uri(Path.cwd())])


def free_port(text: str) -> int:
    """The port, checked. Raises UserError if it is not a port number, is in use, or this user may not listen on it."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:6]) <= 65535):
        raise UserError(f"PORT = {text}: is not a port; give 1 to 65535, as in make mlflow PORT=5001")
    port = int(text)
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise UserError(
            f"PORT = {port}: {reason}; choose another, as in make mlflow PORT={max(port + 1, 5001)}"
        ) from None
    return port


if __name__ == "__main__":
    main()
