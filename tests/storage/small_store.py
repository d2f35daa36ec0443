"""An in-memory S3 store with the calls that the project uses, for tests that would be slow with a real one."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "lab"
MOST_DELETED = 1000  # keys per request, as in Amazon's S3


class SmallStore(ThreadingHTTPServer):
    """One bucket, which tests also fill and read directly, without requests.

    page: entries per page of a listing. refusal: the status and code with which it answers every request. undeletable:
    keys that it refuses to delete. context: the TLS context with its certificate, for https.
    """

    daemon_threads = True

    def __init__(self, page: int = 100, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.page, self.refusal = page, (0, "")
        self.context = context
        self.undeletable: set[str] = set()
        self.tokens: list[str | None] = []  # the session token of each request
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, datetime] = {}
        self.kinds: dict[str, str] = {}  # MIME types
        self.uploads: dict[str, tuple[str, datetime]] = {}  # by upload id: key, and when it began
        self.parts: dict[str, dict[int, bytes]] = {}
        self.sent: list[tuple[str, int]] = []  # objects and parts it received: key, and the part's number or 0
        self.deleted: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'http' if self.context is None else 'https'}://127.0.0.1:{self.server_address[1]}"

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; its TLS handshake is done in its own thread."""
        connection, address = super().get_request()
        if self.context is not None:
            connection = self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def put(self, key: str, data: bytes, modified: datetime | None = None) -> str:
        """Store an object; returns its key."""
        self.objects[key], self.modified[key] = data, modified or datetime.now(UTC)
        return key

    def begin(self, key: str, modified: datetime | None = None) -> str:
        """Begin a multipart upload; returns its id."""
        number = f"upload-{len(self.uploads)}"
        self.uploads[number], self.parts[number] = (key, modified or datetime.now(UTC)), {}
        return number


def tag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallStore

    def do_GET(self) -> None:
        if "list-type" in self.query:
            self._list("ListBucketResult", "Contents", sorted(self._below(self.server.objects)), self._object)
        elif "uploads" in self.query:
            begun = [number for number, (key, _) in self.server.uploads.items() if key in self._below({key: None})]
            self._list("ListMultipartUploadsResult", "Upload", begun, self._upload)
        elif "uploadId" in self.query:
            held = self.server.parts[self.query["uploadId"]]
            self._list(
                "ListPartsResult", "Part", sorted(held), lambda one: {"PartNumber": one, "ETag": tag_of(held[one])}
            )
        elif self.key in self.server.objects:
            self._respond(200, self.server.objects[self.key], self.server.kinds.get(self.key, "application/xml"))
        else:
            self._refuse(404, "NoSuchKey")

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if "partNumber" in self.query:
            self.server.parts[self.query["uploadId"]][int(self.query["partNumber"])] = data
            self._respond(200, b"", tag=tag_of(data))
        else:
            self._keep(data, self.headers["Content-Type"])

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        if "delete" in self.query:
            self._delete([unquote(key) for key in re.findall("<Key>(.*?)</Key>", text)])
        elif "uploads" in self.query:
            self.server.kinds[self.key] = self.headers["Content-Type"]
            root = "InitiateMultipartUploadResult"
            self._respond(200, f"<{root}>{_xml({'UploadId': self.server.begin(self.key)})}</{root}>".encode())
        else:
            number, kind = self.query["uploadId"], self.server.kinds.get(self.key, "")
            numbers = [int(one) for one in re.findall("<PartNumber>(.*?)</PartNumber>", text)]
            if self._keep(b"".join(self.server.parts[number][one] for one in numbers), kind):
                del self.server.uploads[number]

    def do_DELETE(self) -> None:
        del self.server.uploads[self.query["uploadId"]]
        self._respond(204, b"")

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        where = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(where.query, keep_blank_values=True).items()}
        self.key = unquote(where.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        self.server.tokens.append(self.headers["X-Amz-Security-Token"])
        if self.command == "PUT":
            self.server.sent.append((self.key, int(self.query.get("partNumber", 0))))
        if self.server.refusal[0]:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self._refuse(*self.server.refusal)
            return False
        return True

    def log_message(self, *_: Any) -> None:
        pass

    def _below(self, keys: Any) -> list[str]:
        return [key for key in keys if key.startswith(self.query.get("prefix", ""))]

    def _object(self, key: str) -> dict[str, object]:
        data = self.server.objects[key]
        return {"Key": key, "LastModified": _time(self.server.modified[key]), "ETag": tag_of(data), "Size": len(data)}

    def _upload(self, number: str) -> dict[str, object]:
        key, begun = self.server.uploads[number]
        return {"Key": key, "UploadId": number, "Initiated": _time(begun)}

    def _list(self, root: str, name: str, held: Sequence[Any], fields_of: Callable[[Any], dict[str, object]]) -> None:
        """Answer with a page of ``held``; in all kinds of lists, the marker is the number of entries before it."""
        markers = ("continuation-token", "upload-id-marker", "part-number-marker")
        first = int(next((self.query[one] for one in markers if self.query.get(one)), "0"))
        after = first + self.server.page
        text = "".join(f"<{name}>{_xml(fields_of(one))}</{name}>" for one in held[first:after])
        if after < len(held):
            nexts = ("NextContinuationToken", "NextKeyMarker", "NextUploadIdMarker", "NextPartNumberMarker")
            text += "<IsTruncated>true</IsTruncated>" + _xml(dict.fromkeys(nexts, after))
        self._respond(200, f"<{root}>{text}</{root}>".encode())

    def _delete(self, keys: Sequence[str]) -> None:
        if len(keys) > MOST_DELETED:
            self._refuse(400, "MalformedXML")
            return
        for key in keys:
            if key not in self.server.undeletable:
                self.server.objects.pop(key, None)
                self.server.deleted.append(key)
        kept = [_xml({"Key": key, "Code": "AccessDenied"}) for key in keys if key in self.server.undeletable]
        self._respond(200, f"<DeleteResult>{''.join(f'<Error>{one}</Error>' for one in kept)}</DeleteResult>".encode())

    def _keep(self, data: bytes, kind: str) -> bool:
        """Store an object, unless the request forbids overwriting and it exists; returns whether it was stored."""
        if self.headers["If-None-Match"] == "*" and self.key in self.server.objects:
            self._refuse(412, "PreconditionFailed")
            return False
        self.server.put(self.key, data)
        self.server.kinds[self.key] = kind
        self._respond(200, b"<CompleteMultipartUploadResult/>", tag=tag_of(data))
        return True

    def _respond(self, status: int, body: bytes, kind: str = "application/xml", tag: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if tag is not None:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._respond(status, f"<Error><Code>{code}</Code><Message>of the tests</Message></Error>".encode())


def _time(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _xml(values: dict[str, object]) -> str:
    return "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in values.items())
