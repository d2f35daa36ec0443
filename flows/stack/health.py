"""Health checks of the stack's servers, and the buckets and work pools that they need before the first run."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from flows.stack.settings import BUCKETS, Stack
from hiar.errors import RunFailed

STORE_SECONDS = 120.0
PROBE = "probe-of-make-stack"
HEALTH = {"prefect": "/api/health", "mlflow": "/health"}
POOLS = {"experiments": "Whole experiments, which wait for their stages", "stages": "A stage on a device"}


def is_healthy(stack: Stack, server: str) -> bool:
    """Whether a server answers as it should; the S3 store must accept the stack's keys."""
    import httpx
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        if server == "s3":
            s3_client(stack).list_buckets()
            return True
        return httpx.get(stack.url(server) + HEALTH[server], timeout=5, trust_env=False).is_success
    except (httpx.HTTPError, BotoCoreError, ClientError):
        return False


def prepare(stack: Stack) -> None:
    """Create missing buckets and work pools. Raises RunFailed when the store or Prefect's server refuses."""
    import httpx

    _make_buckets(stack)
    for name, description in POOLS.items():
        pool = {"name": name, "type": "process", "description": description}
        answer = httpx.post(f"{stack.url('prefect')}/api/work_pools/", json=pool, timeout=30, trust_env=False)
        if answer.status_code not in (201, 409):  # 409: it exists
            raise RunFailed(f"work pool '{name}': Prefect's server answers {answer.status_code}; see its log")


def s3_client(stack: Stack) -> Any:
    """boto3's client of the stack's store, with short timeouts and no retries."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=stack.url("s3"),
        aws_access_key_id=stack.keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=stack.keys["AWS_SECRET_ACCESS_KEY"],
        region_name=stack.keys["AWS_REGION"],
        config=Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}),
    )


def _make_buckets(stack: Stack) -> None:
    """Create the buckets and wait until they can be written and read, which a store refuses just after its start."""
    from botocore.exceptions import BotoCoreError, ClientError

    client, end = s3_client(stack), time.monotonic() + STORE_SECONDS
    for bucket in BUCKETS:
        while True:
            try:
                with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                    client.create_bucket(Bucket=bucket)
                client.put_object(Bucket=bucket, Key=PROBE, Body=b"whole")
                client.get_object(Bucket=bucket, Key=PROBE)["Body"].read()
                client.delete_object(Bucket=bucket, Key=PROBE)
                break
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > end:
                    raise RunFailed(
                        f"bucket '{bucket}': the store does not serve it ({type(error).__name__})"
                    ) from None
                time.sleep(0.5)
