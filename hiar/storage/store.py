"""An S3 store by boto3, with the settings of the project's DVC remote and the standard variables (AWS_*)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from hiar.errors import UserError, suggest, without_password

READERS = 16  # concurrent requests
PIECE = 1 << 20  # bytes that are read at a time
REMEDIES = {
    "NoSuchBucket": "there is no such bucket; create it, or fix the remote's url",
    "InvalidAccessKeyId": "the store does not know the access key; set AWS_ACCESS_KEY_ID, or AWS_PROFILE",
    "SignatureDoesNotMatch": "the secret key does not match the access key; set AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "access is denied; ask for permission, or use other credentials",
    "403": "access is denied; ask for permission, or use other credentials",
    "ExpiredToken": "the credentials have expired; get new ones",
    "RequestTimeTooSkewed": "the clocks of this machine and of the store differ; set this machine's",
}
CREDENTIALS = "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Store:
    """A bucket and the remote's prefix in it; keys are given without that prefix."""

    client: Any
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def where(self, key: str) -> dict[str, str]:
        """A key as boto3's arguments."""
        return {"Bucket": self.bucket, "Key": self.prefix + key}


@dataclass(frozen=True)
class Stored:
    """An object in the store: its size in bytes and when it was written."""

    size: int
    modified: datetime


def open_store(root: Path, name: str | None = None) -> Store:
    """The store of the project's DVC remote ``name`` (None: the default remote). No request is made.

    Raises UserError if there is no such remote, it is not on S3, or its settings are invalid.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError
    from dvc.config import Config as DvcConfig
    from dvc.config import ConfigError

    try:
        config = DvcConfig(os.fspath(root / ".dvc"))
    except ConfigError as error:
        raise UserError(f"{root / '.dvc' / 'config'}: {' '.join(str(error).split())}; fix it") from None
    remotes = config["remote"]
    name = name or config["core"].get("remote")
    if name is None:
        raise UserError(
            f"{root / '.dvc' / 'config'}: names no remote; add one, as in dvc remote add --default store s3://BUCKET/hiar"
        )
    if name not in remotes:
        raise UserError(f"remote '{name}': {root / '.dvc' / 'config'} has no such remote; {suggest(name, remotes)}")
    remote = remotes[name]
    found = re.fullmatch(r"s3://([^/]+)/?(.*?)/*", remote["url"])
    if found is None:
        raise UserError(f"remote '{name}': url = {remote['url']}: is not on S3; name one that is (s3://...)")
    try:
        session = boto3.session.Session(
            aws_access_key_id=remote.get("access_key_id"),
            aws_secret_access_key=remote.get("secret_access_key"),
            aws_session_token=remote.get("session_token"),
            profile_name=remote.get("profile"),
            region_name=remote.get("region"),
        )
        client = session.client(
            "s3",
            endpoint_url=remote.get("endpointurl"),
            verify=remote.get("ssl_verify"),
            config=Config(
                signature_version="s3v4",  # for links too: boto3 signs them in the old way where AWS once took it
                connect_timeout=10,
                read_timeout=60,
                retries={"mode": "standard", "max_attempts": 4},
                max_pool_connections=READERS,
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise UserError(f"remote '{name}': {_words(error)}; fix its settings or the AWS_* variables") from None
    bucket, prefix = found.groups()
    return Store(client, bucket, f"{prefix}/" if prefix else "")


def cache_of(root: Path) -> Path:
    """The project's DVC cache, which has the same keys as a store."""
    from dvc.config import Config

    return Path(Config(os.fspath(root / ".dvc"))["cache"].get("dir") or root / ".dvc" / "cache")


@contextmanager
def asking(store: Store) -> Iterator[None]:
    """Turn errors of the store, its settings or the network in the body into a UserError."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except NoCredentialsError:
        raise UserError(f"{store.url}: {CREDENTIALS}") from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        remedy = REMEDIES.get(code, f"{_words(error)}; fix that and run again")
        raise UserError(f"{store.url}: {remedy}") from None
    except BotoCoreError as error:
        raise UserError(f"{store.url}: {_words(error)}; check that the store and the network are up") from None


def listing(store: Store) -> dict[str, Stored]:
    """Every object of the store, by key. Raises UserError as `asking` does."""
    found = {}
    with asking(store):
        pages = store.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=store.bucket, Prefix=store.prefix):
            for entry in page.get("Contents", []):
                found[entry["Key"].removeprefix(store.prefix)] = Stored(entry["Size"], entry["LastModified"])
    return found


def unfinished_uploads(store: Store, under: str = "") -> list[dict[str, Any]]:
    """Unfinished multipart uploads: ``Key`` (with the prefix), ``UploadId``, ``Initiated``."""
    found: list[dict[str, Any]] = []
    with asking(store):
        pages = store.client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=store.bucket, Prefix=store.prefix + under):
            found += page.get("Uploads") or []
    return found


def pieces(store: Store, key: str) -> Iterator[bytes]:
    """The content of an object in pieces. Raises UserError as `asking` does, also if the content is cut short."""
    with asking(store):
        body = store.client.get_object(**store.where(key))["Body"]
        while piece := body.read(PIECE):
            yield piece


def content(store: Store, key: str) -> bytes:
    """The whole content of a small object."""
    return b"".join(pieces(store, key))


def each(act: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of ``act`` for all items, in order, computed concurrently; an exception ends the iteration."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(act, items)


def _words(error: Exception) -> str:
    """An error in one line, without passwords in addresses."""
    return without_password(" ".join(str(error).split()))[:300]
