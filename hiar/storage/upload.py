"""Uploads that resume after an interruption and never overwrite an existing object."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from hiar.errors import UserError
from hiar.io.progress import Progress
from hiar.storage.store import Store, asking, unfinished_uploads

PART = 16 << 20  # bytes; S3 takes 10,000 parts of at least 5 MB
MOST_PARTS = 10_000
TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


def upload(store: Store, path: Path, key: str, kind: str, part: int = PART) -> bool:
    """Store a file under a new key; if the key exists, keep its object and return False.

    kind: its MIME type. Parts left by an interrupted upload of the same bytes are not sent again. The object appears
    only when it is complete. Raises UserError as `asking` does, and when the file is too large.
    """
    from botocore.exceptions import ClientError

    size = path.stat().st_size
    if size > MOST_PARTS * part:
        raise UserError(f"{path}: is {size} bytes, more than {MOST_PARTS} parts of {part}")
    try:
        with asking(store):
            try:
                if size <= part:
                    body = path.read_bytes()
                    store.client.put_object(**store.where(key), Body=body, ContentType=kind, IfNoneMatch="*")
                else:
                    _in_parts(store, path, key, kind, part, size)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in TAKEN:
                    raise FileExistsError from None
                raise
    except FileExistsError:
        return False
    return True


def _in_parts(store: Store, path: Path, key: str, kind: str, part: int, size: int) -> None:
    begun = [one for one in unfinished_uploads(store, key) if one["Key"] == store.prefix + key]
    where = store.where(key)
    number = (
        begun[-1]["UploadId"] if begun else store.client.create_multipart_upload(**where, ContentType=kind)["UploadId"]
    )
    there: dict[int, Any] = {}
    for page in store.client.get_paginator("list_parts").paginate(**where, UploadId=number):
        there |= {one["PartNumber"]: one["ETag"] for one in page.get("Parts", [])}
    parts = []
    with path.open("rb") as file, Progress(f"upload {path.name}", size, unit="bytes") as progress:
        for index in range(1, -(-size // part) + 1):
            body = file.read(part)
            tag = there.get(index)
            if tag is None or tag.strip('"') != hashlib.md5(body, usedforsecurity=False).hexdigest():
                tag = store.client.upload_part(**where, UploadId=number, PartNumber=index, Body=body)["ETag"]
            parts.append({"PartNumber": index, "ETag": tag})
            progress.advance(len(body))
    store.client.complete_multipart_upload(**where, UploadId=number, MultipartUpload={"Parts": parts}, IfNoneMatch="*")
