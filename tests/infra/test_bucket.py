"""`infra/bucket.py` sends a store only the requests it needs. The stores here answer as AWS does."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from infra_files import INFRA, execute

DENIED = "<Error><Code>AccessDenied</Code><Message>not for you</Message></Error>"


@contextmanager
def store(allowed: dict[tuple[str, str], int], starting: int = 0) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """A store's address, and its requests: method, path, body. It refuses those that are not ``allowed``.

    starting: the number of first requests that it answers with 500.
    """
    requests: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            requests.append((self.command, self.path, body))
            status = allowed.get((self.command, self.path), 403) if len(requests) > starting else 500
            text = b"" if status == 200 or self.command == "HEAD" else DENIED.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_HEAD = do_PUT = answer

        def log_message(self, *_words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("allowed", "region", "methods", "code"),
    [
        ({("HEAD", "/b"): 200}, "us-east-1", ["HEAD"], 0),
        ({("HEAD", "/b"): 404, ("PUT", "/b"): 200}, "us-east-1", ["HEAD", "PUT"], 0),
        ({("HEAD", "/b"): 404, ("PUT", "/b"): 200}, "eu-central-1", ["HEAD", "PUT"], 0),
        ({("HEAD", "/b"): 404}, "us-east-1", ["HEAD", "PUT"], 1),
        ({}, "us-east-1", ["HEAD"], 1),
    ],
    ids=["there", "missing", "elsewhere", "not to be made", "not to be seen"],
)
def test_a_bucket_is_made_only_where_it_is_missing(
    allowed: dict[tuple[str, str], int], region: str, methods: list[str], code: int
) -> None:
    with store(allowed) as (address, requests):
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": region}
        made = execute([sys.executable, str(INFRA / "bucket.py"), "b"], env=own | keys | {"AWS_ENDPOINT_URL": address})
    assert made.returncode == code, made.stderr
    assert [method for method, *_ in requests] == methods
    assert [line.split(":")[0] for line in made.stderr.splitlines()] == ["error"] * code
    assert all((region in body) == (region != "us-east-1") for method, _, body in requests if method == "PUT")


def test_a_store_that_is_still_starting_is_waited_for() -> None:
    with store({("HEAD", "/b"): 200}, starting=1) as (address, requests):
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        own |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "x"}
        own |= {"AWS_ENDPOINT_URL": address, "AWS_MAX_ATTEMPTS": "1"}  # boto would otherwise retry
        made = execute([sys.executable, str(INFRA / "bucket.py"), "b"], env=own)
    assert (made.returncode, made.stderr) == (0, "")
    assert [method for method, *_ in requests] == ["HEAD", "HEAD"]
