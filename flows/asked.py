"""What a stage asks of the pool of workers that runs it, in the words of that kind of pool (infra/pools)."""

from __future__ import annotations

from typing import Any

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from hiar.config import Params

DEPLOYMENT = "stage/stage"


def job_variables(kind: str | None, params: Params, stage: str) -> dict[str, Any]:
    """Of a pool of that kind: GPUs where params.yaml wants them, one a process, and the memory that it names.

    Where it says nothing, the pool's own variables hold. Processes of a machine share what it has (flows.devices).
    """
    runtime, asked = params.runtime, dict[str, Any]()
    count = runtime.processes_of(stage) if runtime.device == "cuda" else None
    if kind == "kubernetes":
        asked = {"gpus": count, "memory": runtime.memory_gb and f"{runtime.memory_gb:g}G"}
    elif kind == "docker":
        # In bytes: Docker's own suffixes are powers of two.
        limit = runtime.memory_gb and str(round(runtime.memory_gb * 1e9))
        cards = count and [{"Driver": "nvidia", "Count": count, "Capabilities": [["gpu"]]}]
        asked = {"gpus": cards, "mem_limit": limit}
    return {name: value for name, value in asked.items() if value is not None}


def kind_of_pool() -> str | None:
    """The kind of the pool that the deployment of stages runs in; None where there is none."""
    with get_client(sync_client=True) as client:
        pool = client.read_deployment_by_name(DEPLOYMENT).work_pool_name
        try:
            return None if pool is None else client.read_work_pool(pool).type
        except ObjectNotFound:
            return None
