"""`python bucket.py NAME`: make sure that the store has a bucket; the AWS_* variables say which store, and who asks."""

from __future__ import annotations

import sys
import time

PATIENCE = 120.0  # seconds that a store may take to start


def main(name: str) -> int:
    """Create the bucket unless it is there and return 0; one line and 1 when the store does not let us."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client("s3")
    until = time.monotonic() + PATIENCE
    while True:
        try:
            if name not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=name)
            return 0
        except (BotoCoreError, ClientError) as error:
            refused = isinstance(error, ClientError) and error.response["ResponseMetadata"]["HTTPStatusCode"] < 500
            if refused or time.monotonic() > until:
                sys.stderr.write(f"error: bucket {name}: {' '.join(str(error).split())}\n")
                return 1
            time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
