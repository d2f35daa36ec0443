"""`python bucket.py NAME`: make sure that the store has a bucket; AWS_* variables name the store and the credentials.

If the bucket exists, no permission is needed beyond those that terraform/access.tf gives a worker.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any

PATIENCE = 120.0  # seconds that a store may take to start
MISSING, BROKEN = 404, 500
HOME = "us-east-1"  # the one region of AWS that must not be named when a bucket is created


def main(name: str) -> int:
    """Create the bucket unless it exists, and return 0; print a line and return 1 if the store refuses."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("s3")
    until = time.monotonic() + PATIENCE
    while True:
        try:
            _create_unless_there(client, name)
            return 0
        except (BotoCoreError, ClientError) as error:
            refused = isinstance(error, ClientError) and _status(error) < BROKEN
            if refused or time.monotonic() > until:
                sys.stderr.write(f"error: bucket {name}: {' '.join(str(error).split())}\n")
                return 1
            time.sleep(1)


def _create_unless_there(client: Any, name: str) -> None:
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=name)
    except ClientError as error:
        if _status(error) != MISSING:
            raise
        region = client.meta.region_name
        place = {} if region == HOME else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):  # another process was faster
            client.create_bucket(Bucket=name, **place)


def _status(error: Any) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
